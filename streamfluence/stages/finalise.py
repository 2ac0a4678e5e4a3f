"""Publish the rows of one example set as a canonical Zarr group, for other readers."""

from typing import Any

from streamfluence.run.rows import row_receipts, spans
from streamfluence.store import RunStore


def finalise(run_path: str, example_set: str = "train") -> dict[str, Any]:
    """Link the rows of a set into ``sets/<set>.zarr``; safe to repeat.

    Raises:
        IncompleteError: If partitions are missing.
        DamageError: If bytes differ from their receipts, or rows do not belong together.
    """
    store = RunStore.open(run_path)
    checkpoints = len(store.manifest["checkpoints"])
    for checkpoint in range(checkpoints):
        row_receipts(store, example_set, checkpoint)
    count = len(spans(store, example_set))
    return {"path": str(store.finalise(example_set, checkpoints, count))}
