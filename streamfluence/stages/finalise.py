"""Publish the rows of one example set as a canonical Zarr group, for other readers."""

from typing import Any

from streamfluence.errors import IncompleteError
from streamfluence.layout import collect_stage
from streamfluence.stages._sets import partition_count
from streamfluence.store import RunStore


def finalise(run_path: str, example_set: str = "train") -> dict[str, Any]:
    """Link the rows of a set into ``sets/<set>.zarr``; safe to repeat.

    Raises:
        IncompleteError: If partitions are missing.
    """
    store = RunStore.open(run_path)
    checkpoints, count = len(store.manifest["checkpoints"]), partition_count(store, example_set)
    for checkpoint in range(checkpoints):
        missing = store.missing(collect_stage(example_set, checkpoint), count)
        if missing:
            raise IncompleteError(
                f"{example_set!r} lacks {len(missing)} partitions at checkpoint {checkpoint} "
                f"({missing[:20]}); run `streamfluence collect` first"
            )
    return {"path": str(store.finalise(example_set, checkpoints, count))}
