"""What rows and scores rest on, as digests, so that what was lost or replaced since is noticed."""

from collections.abc import Mapping
from typing import Any

from streamfluence.errors import DamageError, IncompleteError
from streamfluence.layout import decision_stage, scales_stage
from streamfluence.run.opened import OpenRun
from streamfluence.store import Receipt
from streamfluence.store.digests import content_digest, document_digest


def sketch_digest(run: OpenRun, checkpoint: int) -> str:
    """Return a digest of the directions that rows of one checkpoint are in, and of their coordinates.

    Raises:
        IncompleteError: If there are none.
    """
    decision = only_receipt(run, decision_stage(checkpoint))
    coordinates = [decision.facts.get("scales"), scales_digest(run, checkpoint)]
    return document_digest([content_digest([decision]), *coordinates])


def refuse_other_scales(run: OpenRun, checkpoint: int) -> None:
    """Raise DamageError if directions were decided in other coordinates than are there now."""
    decision = only_receipt(run, decision_stage(checkpoint))
    if decision.facts.get("scales") != scales_digest(run, checkpoint):
        raise DamageError(
            f"{run.url}: the decision of checkpoint {checkpoint} was made with another sketch of the scales "
            f"than is there now; put back what was there, or use a new run folder"
        )


def scales_digest(run: OpenRun, checkpoint: int) -> str:
    """Return a digest of the coordinates of one checkpoint's damping, which most runs need none of."""
    by_weight = run.method.curvature.by_weight
    stages = [scales_stage(checkpoint)] if by_weight else []
    return content_digest(only_receipt(run, stage) for stage in stages)


def set_digest(run: OpenRun, example_set: str) -> str:
    """Return a digest of what pins an example set."""
    return run.example_set(example_set).seal


def of_other_data(run: OpenRun, receipt: Receipt) -> bool:
    """Return whether a part of a sketch was made from another training set than the run has, or had."""
    return receipt.facts.get("set") not in run.train.seals


def refuse_other_data(run: OpenRun, receipt: Receipt) -> None:
    """Raise DamageError if a part of a sketch was made from another training set."""
    if of_other_data(run, receipt):
        raise DamageError(
            f"{run.url}: partition {receipt.partition} of stage {receipt.stage} was made from another "
            f"training set than the run has now; put back what was there, or "
            f"`streamfluence repair {run.url}` makes it again"
        )


def only_receipt(run: OpenRun, stage: str) -> Receipt:
    """Return the receipt of a stage of a sketch that has one partition.

    Raises:
        IncompleteError: If there is none.
        DamageError: If it was made from another training set.
    """
    receipt = run.receipt(stage, 0)
    if receipt is None:
        raise IncompleteError(
            f"{run.url} has no receipt of {stage}: it was not made yet, or was lost; "
            f"run `streamfluence sketch` first"
        )
    refuse_other_data(run, receipt)
    return receipt


def differing(promised: Mapping[str, Any], there: Mapping[str, str]) -> list[str]:
    """Return the names of what is no longer what it was."""
    return [name for name, digest in there.items() if promised.get(name) != digest]
