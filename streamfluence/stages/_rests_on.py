"""What a stored thing rests on, as digests, so that what was lost or replaced since is noticed.

A digest is of content, never of an attempt's name: a partition that is computed again
bit for bit, as a repair does, leaves valid what rests on it. The metadata of Zarr is left
out, because another version of it may say the same in other words.
"""

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

from streamfluence.errors import IncompleteError
from streamfluence.stages import _damping
from streamfluence.stages._sets import plan_stage, scales_stage, set_facts
from streamfluence.store import Receipt, RunStore
from streamfluence.store.documents import canonical

_METADATA = "zarr.json"


def content_digest(receipts: Iterable[Receipt]) -> str:
    """Return a digest of what partitions hold: their places, and every object's length and checksum."""
    return document_digest([_content(receipt) for receipt in receipts])


def document_digest(content: Any) -> str:
    """Return a digest of a document, whatever the order of its keys."""
    return sha256(canonical(content)).hexdigest()[:32]


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


def _content(receipt: Receipt) -> list[Any]:
    objects = {
        name: [item.length, item.crc32]
        for name, item in receipt.objects.items()
        if name.rpartition("/")[2] != _METADATA
    }
    return [receipt.stage, receipt.partition, receipt.start, receipt.stop, objects]
