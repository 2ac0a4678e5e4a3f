"""Sketch the curvature of every checkpoint from a sample, before any row is written."""

from collections.abc import Callable
from typing import Any

from streamfluence.executors.base import Executor
from streamfluence.registry import member
from streamfluence.stages import _sketch_tasks as work
from streamfluence.stages._execution import Execution, Progress, Silent, run_all
from streamfluence.stages._sample import sample_tasks
from streamfluence.stages._session import load_state, session
from streamfluence.stages._sets import plan_stage


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
        (checkpoint, *step)
        for checkpoint in range(opened.checkpoint_count())
        if not opened.store.receipts(plan_stage(checkpoint))
        for step in steps_of(opened.manifest)
    ]
    if steps:
        parts = sample_tasks(opened)
        with execution.open(parts, opened.manifest["compute"]["threads"]) as executor:
            progress.start("sketch", len(steps), "steps")
            for checkpoint, stage, function, split in steps:
                _step(
                    executor,
                    run_path,
                    execution,
                    checkpoint,
                    stage,
                    function,
                    parts if split else 0,
                )
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


def steps_of(manifest: dict[str, Any]) -> list[tuple[str, Callable[..., None], bool]]:
    """Return (stage, work unit, split over the sample?) in order."""
    kind = member("projections", manifest["projection"]["name"])
    steps: list[tuple[str, Callable[..., None], bool]] = [("coverage", work.coverage, False)]
    if kind.fitted:
        steps += [("fit", work.fit, True), ("basis", work.basis, False)]
        if getattr(kind, "passes", 1) == 2:
            steps += [("refine", work.refine, True), ("directions", work.choose, False)]
    return [*steps, ("gram", work.gram, True), ("plan", work.plan, False)]


def _step(
    executor: Executor,
    run_path: str,
    execution: Execution,
    checkpoint: int,
    stage: str,
    function: Callable[..., None],
    parts: int,
) -> None:
    device = execution.resolved_device()
    store = session(run_path, device).store
    missing = store.missing(f"sketch/{checkpoint}/{stage}", parts or 1)
    tasks = [(run_path, device, checkpoint, *([part] if parts else [])) for part in missing]
    run_all(executor, function, tasks)
