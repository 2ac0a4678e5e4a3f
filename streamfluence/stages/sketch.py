"""Sketch the curvature of every checkpoint from a sample, before any row is written."""

from collections.abc import Callable
from typing import Any, NamedTuple

from streamfluence.executors.base import Executor
from streamfluence.registry import member
from streamfluence.stages import _damping
from streamfluence.stages import _sketch_tasks as work
from streamfluence.stages._execution import Execution, Progress, Silent, run_all
from streamfluence.stages._sample import sample_tasks
from streamfluence.stages._session import Session, load_state, session
from streamfluence.stages._sets import plan_stage

LASTING = (
    "coverage",
    "scales",
)  # read after the plan, too, and made again when a repair drops them


def sketch(
    run_path: str, execution: Execution | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Do what is missing of the sketch of every checkpoint; return what was decided.

    Returns:
        ``{"checkpoints": [facts of checkpoint 0, ...]}``; see ``describe``.

    Raises:
        CoverageError: If a trainable parameter cannot be captured and is not excluded.
        NonFiniteError: If the sample's gradients are NaN or infinite.
    """
    execution, progress = execution or Execution(), progress or Silent()
    opened = session(run_path, execution.resolved_device())
    steps = [
        (checkpoint, step)
        for checkpoint in range(opened.checkpoint_count())
        for step in _steps_left(opened, checkpoint)
    ]
    if steps:
        parts = sample_tasks(opened)
        with execution.open(parts, opened.manifest["compute"]["threads"]) as executor:
            progress.start("sketch", len(steps), "steps")
            for checkpoint, step in steps:
                _do(executor, run_path, execution, checkpoint, step, parts if step.split else 0)
                progress.advance(1)
            progress.finish()
    return describe(run_path, execution)


def describe(run_path: str, execution: Execution | None = None) -> dict[str, Any]:
    """Return the facts of a finished sketch: directions, damping, effective dimension, bits, coverage."""
    opened = session(run_path, (execution or Execution()).resolved_device())
    facts = []
    for checkpoint in range(opened.checkpoint_count()):
        coverage = load_state(opened.store, f"sketch/{checkpoint}/coverage", 0)[1]
        facts.append(
            {**load_state(opened.store, plan_stage(checkpoint), 0)[1], "coverage": coverage}
        )
    return {"checkpoints": facts}


class Step(NamedTuple):
    """One stage of a checkpoint's sketch.

    Attributes:
        split: Whether there is a work unit for each part of the sample, or one in all.
        arguments: Of the work unit, after the checkpoint and before the part.
        grows: Whether its state grows with the sample.
    """

    stage: str
    function: Callable[..., None]
    split: bool
    arguments: tuple[Any, ...] = ()
    grows: bool = False


def steps_of(manifest: dict[str, Any]) -> list[Step]:
    """Return the steps of one checkpoint, in order."""
    kind = member("projections", manifest["projection"]["name"])
    steps = [Step("coverage", work.coverage, False)]
    if _damping.by_weight(manifest["curvature"]):
        steps += [Step("squares", work.squares, True), Step("scales", work.scales, False)]
    if kind.fitted:
        steps += [Step("fit", work.fit, True), Step(work.fitted(0), work.basis, False)]
        for number, shown in enumerate(kind.passes[1:], 1):
            steps += [
                Step(f"refine-{number}", work.refine, True, (number,), shown == "rows"),
                Step(work.fitted(number), work.choose, False, (number,)),
            ]
    return [*steps, Step("gram", work.gram, True), Step("plan", work.plan, False)]


def _steps_left(opened: Session, checkpoint: int) -> list[Step]:
    """Return the steps that are not known to be done: all, or after the plan what it does not hold."""
    steps, receipts = steps_of(opened.manifest), opened.store.receipts
    if not receipts(plan_stage(checkpoint)):
        return steps
    lost = {s.stage for s in steps if s.stage in LASTING}
    lost = {stage for stage in lost if not receipts(f"sketch/{checkpoint}/{stage}")}
    if "scales" in lost:
        lost.add("squares")
    return [step for step in steps if step.stage in lost]


def _do(
    executor: Executor,
    run_path: str,
    execution: Execution,
    checkpoint: int,
    step: Step,
    parts: int,
) -> None:
    device = execution.resolved_device()
    store = session(run_path, device).store
    missing = store.missing(f"sketch/{checkpoint}/{step.stage}", parts or 1)
    common = (run_path, device, checkpoint, *step.arguments)
    run_all(executor, step.function, [(*common, *([part] if parts else [])) for part in missing])
