"""Publish the rows of one example set as a canonical Zarr group, for other readers."""

from typing import Any

from streamfluence.run.opened import OpenRun
from streamfluence.run.rows import stored_rows


def finalise(run_path: str, example_set: str = "train") -> dict[str, Any]:
    """Link the rows of a set into ``sets/<set>.zarr``; safe to repeat.

    Raises:
        IncompleteError: If partitions are missing.
        DamageError: If bytes differ from their receipts, or rows do not belong together.
    """
    run = OpenRun.open(run_path)
    for rows in stored_rows(run, example_set):
        rows.receipts()
    count = len(run.example_set(example_set).spans)
    return {"path": str(run.finalise(example_set, len(run.checkpoints), count))}
