"""The steps of one checkpoint's sketch, in order, and doing those that are missing."""

from collections.abc import Callable
from typing import Any, NamedTuple

from streamfluence.execution import Execution, Progress, Silent, run_all
from streamfluence.executors.base import Executor
from streamfluence.registry import member
from streamfluence.run.at_checkpoint import AtCheckpoint, at_checkpoints
from streamfluence.run.manifest import Method
from streamfluence.run.session import Session
from streamfluence.sketching import units as work
from streamfluence.sketching.coverage import coverage
from streamfluence.sketching.decide import decide
from streamfluence.sketching.fitted import fitted
from streamfluence.sketching.sample import sample_tasks

# Read after the decision, too, and made again when a repair drops them.
LASTING = ("coverage", "scales")


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


def steps_of(method: Method) -> list[Step]:
    """Return the steps of one checkpoint, in order."""
    kind = member("projections", method.projection.name)
    steps = [Step("coverage", coverage, False)]
    if method.curvature.by_weight:
        steps += [Step("squares", work.squares, True), Step("scales", work.scales, False)]
    if kind.fitted:
        steps += [Step("fit", work.fit, True), Step(fitted(0), work.basis, False)]
        for number, shown in enumerate(kind.passes[1:], 1):
            steps += [
                Step(f"refine-{number}", work.refine, True, (number,), shown == "rows"),
                Step(fitted(number), work.choose, False, (number,)),
            ]
    return [*steps, Step("gram", work.gram, True), Step("decision", decide, False)]


def steps_left(at: AtCheckpoint) -> list[Step]:
    """Return the steps that are not known to be done: all, or after the decision what it does not hold."""
    steps, receipts = steps_of(at.session.run.method), at.session.run.receipts
    if not receipts(at.stage("decision")):
        return steps
    lost = {s.stage for s in steps if s.stage in LASTING}
    lost = {stage for stage in lost if not receipts(at.stage(stage))}
    if "scales" in lost:
        lost.add("squares")
    return [step for step in steps if step.stage in lost]


def sketch_missing(
    session: Session, execution: Execution, progress: Progress | None = None
) -> None:
    """Do what is missing of the sketch of every checkpoint."""
    progress = progress or Silent()
    left = [(at, step) for at in at_checkpoints(session) for step in steps_left(at)]
    if not left:
        return
    parts = sample_tasks(session)
    with execution.open(parts, session.run.method.batches.threads) as executor:
        progress.start("sketch", len(left), "steps")
        for at, step in left:
            do_step(executor, at, step, parts)
            progress.advance(1)
        progress.finish()


def do_step(executor: Executor, at: AtCheckpoint, step: Step, parts: int) -> None:
    """Do the work units of one step that are missing; ``parts`` is how many the sample is cut into."""
    session, run = at.session, at.session.run
    missing = run.missing(at.stage(step.stage), parts if step.split else 1)
    common = (run.url, str(session.device), at.number, *step.arguments)
    tasks = [(*common, *([part] if step.split else [])) for part in missing]
    run_all(executor, step.function, tasks)
