"""What rows and scores rest on, as digests, so that what was lost or replaced since is noticed."""

from collections.abc import Mapping
from typing import Any

from streamfluence.errors import IncompleteError
from streamfluence.stages import _damping
from streamfluence.stages._sets import plan_stage, scales_stage, set_facts
from streamfluence.store import Receipt, RunStore
from streamfluence.store.digests import content_digest, document_digest


def sketch_digest(store: RunStore, checkpoint: int) -> str:
    """Return a digest of the directions that rows of one checkpoint are in.

    Raises:
        IncompleteError: If there are none.
    """
    stages = [plan_stage(checkpoint)]
    if _damping.by_weight(store.manifest["curvature"]):
        stages.append(scales_stage(checkpoint))
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
