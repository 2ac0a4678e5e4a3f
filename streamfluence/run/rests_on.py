"""What rows and scores rest on, as digests, so that what was lost or replaced since is noticed."""

from collections.abc import Mapping
from typing import Any

from streamfluence.errors import DamageError, IncompleteError
from streamfluence.run import damping as _damping
from streamfluence.run.sets import plan_stage, scales_stage, set_facts
from streamfluence.store import Receipt, RunStore
from streamfluence.store.digests import content_digest, document_digest


def sketch_digest(store: RunStore, checkpoint: int) -> str:
    """Return a digest of the directions that rows of one checkpoint are in, and of their coordinates.

    Raises:
        IncompleteError: If there are none.
    """
    plan = only_receipt(store, plan_stage(checkpoint))
    coordinates = [plan.facts.get("scales"), scales_digest(store, checkpoint)]
    return document_digest([content_digest([plan]), *coordinates])


def refuse_other_scales(store: RunStore, checkpoint: int) -> None:
    """Raise DamageError if directions were decided in other coordinates than are there now."""
    plan = only_receipt(store, plan_stage(checkpoint))
    if plan.facts.get("scales") != scales_digest(store, checkpoint):
        raise DamageError(
            f"{store.url}: the plan of checkpoint {checkpoint} was decided with another sketch of the scales "
            f"than is there now; put back what was there, or use a new run folder"
        )


def scales_digest(store: RunStore, checkpoint: int) -> str:
    """Return a digest of the coordinates of one checkpoint's damping, which most runs need none of."""
    by_weight = _damping.by_weight(store.manifest["curvature"])
    stages = [scales_stage(checkpoint)] if by_weight else []
    return content_digest(only_receipt(store, stage) for stage in stages)


def set_digest(store: RunStore, example_set: str) -> str:
    """Return a digest of what pins an example set."""
    return document_digest(set_facts(store, example_set))


def only_receipt(store: RunStore, stage: str) -> Receipt:
    """Return the receipt of a stage of one partition.

    Raises:
        IncompleteError: If there is none.
    """
    receipt = store.receipt(stage, 0)
    if receipt is None:
        raise IncompleteError(
            f"{store.url} has no receipt of {stage}: it was not made yet, or was lost; "
            f"run `streamfluence sketch` first"
        )
    return receipt


def differing(promised: Mapping[str, Any], found: Mapping[str, str]) -> list[str]:
    """Return the names of what is no longer what it was."""
    return [name for name, digest in found.items() if promised.get(name) != digest]
