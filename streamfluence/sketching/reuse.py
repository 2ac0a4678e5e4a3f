"""Take over another run's sketch as far as it cannot differ: at most all of it but its decision.

Bytes and codec are decided last, from sums that know neither, so runs that differ in nothing
else share every pass over the sample. The size of the damping is decided last, too, unless the
projection looks at it when it is fitted; what follows that is then made again. Where the damping
differs from weight to weight, how it does decides the coordinates of the sums.
"""

from collections.abc import Iterator
from typing import Any

from streamfluence.layout import decision_stage, is_of_sketch, sketch_stage
from streamfluence.registry import member
from streamfluence.run.opened import OpenRun
from streamfluence.run.states import load_state, save_state
from streamfluence.sketching.fitted import fitted

_OF_THE_PLAN = ("rows", "checkpoint_weights", "format_version")
_OF_THE_SUMS = {
    "name",
    "options",
    "blocks",
}  # of the curvature; all else in its table is about damping


def reuse_sketch(source: OpenRun, target: OpenRun) -> bool:
    """Copy the states of a finished sketch, verified; False if the runs must sketch apart."""
    if _decides(source) != _decides(target):
        return False
    apart = {stage for number in source.checkpoints for stage in _apart(source, target, number)}
    for stage in source.stages():
        if is_of_sketch(stage) and stage not in apart:
            for part, receipt in source.receipts(stage).items():
                state, facts = load_state(source, stage, part)
                save_state(target, stage, part, state, facts, dict(receipt.facts))
    return True


def _apart(source: OpenRun, target: OpenRun, checkpoint: int) -> Iterator[str]:
    """Yield the stages of a checkpoint's sketch that runs of the same sums may not share."""
    yield decision_stage(checkpoint)
    kind = member("projections", target.method.projection.name)
    if kind.damped and source.method.curvature != target.method.curvature:
        yield sketch_stage(checkpoint, fitted(len(kind.passes) - 1))
        yield sketch_stage(checkpoint, "gram")


def _decides(run: OpenRun) -> dict[str, Any]:
    """Return what decides the sums of a sketch: part of the method, and the training set."""
    found = {key: value for key, value in run.manifest.items() if key not in _OF_THE_PLAN}
    curvature = found["curvature"]
    told = set(curvature) - {"damping"} if run.method.curvature.by_weight else _OF_THE_SUMS
    data = [(each.table, each.count, each.identity) for each in run.train.generations]
    return found | {"curvature": {key: curvature[key] for key in told}, "train": data}
