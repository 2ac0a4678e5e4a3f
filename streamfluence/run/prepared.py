"""What is prepared of a score before any block is read: one stage, which all its parts rest on.

Readouts prepare from a sample of rows; a source that has no rows prepares what it multiplies with.

The document of a score says whether there is one. Its receipt carries the digests of that
document, of the sketches and of all rows that the sample may be of.
"""

from collections.abc import Mapping
from typing import Any

from streamfluence.errors import DamageError, IncompleteError
from streamfluence.layout import prepared_stage
from streamfluence.run.opened import OpenRun
from streamfluence.run.rests_on import differing, set_digest, sketch_digest
from streamfluence.run.rows import stored_rows
from streamfluence.run.source import of_rows, scan_of
from streamfluence.store import Receipt
from streamfluence.store.digests import content_digest, document_digest

PREPARED = "prepared"  # key of a score's document, and the base that its parts carry


def prepares(spec: Mapping[str, Any]) -> bool:
    """Return whether any readout of a score prepares something."""
    return bool(spec.get(PREPARED))


def prepared_bases(run: OpenRun, spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests that the receipt of the stage carries."""
    return {
        "score": document_digest(spec),
        "sketch": document_digest([sketch_digest(run, c) for c in run.checkpoints]),
        "train": _train_digest(run, spec) if of_rows(spec) else set_digest(run, "train"),
        **_segments_digest(run, spec),
    }


def _segments_digest(run: OpenRun, spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest of the segments of a recorded training, where scores are made of one."""
    stage, count = scan_of(spec)
    if not count:
        return {}
    found = run.receipts(stage)
    whole = all(number in found for number in range(count))
    return {"segments": content_digest(found[n] for n in range(count)) if whole else "missing"}


def _train_digest(run: OpenRun, spec: Mapping[str, Any]) -> str:
    chosen = sorted(partition for task in spec["tasks"] for partition in task)
    at_each = stored_rows(run, "train")
    return document_digest([content_digest(rows.receipts(chosen)) for rows in at_each])


def prepared_receipt(run: OpenRun, label: str) -> Receipt:
    """Return the receipt of the stage.

    Raises:
        IncompleteError: If there is none.
    """
    receipt = run.receipt(prepared_stage(label), 0)
    if receipt is None:
        raise IncompleteError(
            f"scores {label!r} of {run.url} lack what they prepare before any row or gradient is looked at; "
            "run `streamfluence score`"
        )
    return receipt


def prepared_changed(run: OpenRun, label: str, spec: Mapping[str, Any]) -> bool:
    """Return whether the stage is there and rests on something else than is there now."""
    receipt = run.receipt(prepared_stage(label), 0)
    return receipt is not None and bool(differing(receipt.facts, prepared_bases(run, spec)))


def refuse_changed_preparation(run: OpenRun, label: str, spec: Mapping[str, Any]) -> None:
    """Raise DamageError if what was prepared rests on something else than is there now."""
    if prepares(spec) and prepared_changed(run, label, spec):
        raise DamageError(
            f"what scores {label!r} of {run.url} prepared was made from other rows or settings than are "
            f"there now; put back what was there, or `streamfluence repair {run.url}` makes the "
            "scores again"
        )
