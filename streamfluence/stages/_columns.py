"""The small stored columns of the training examples, a partition at a time, for all checkpoints."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from streamfluence.layout import collect_stage
from streamfluence.stages._sets import partition_count
from streamfluence.store import RunStore, array_names


@dataclass(frozen=True)
class Columns:
    """Columns of the consecutive examples of one partition.

    Attributes:
        start: Global row of the first.
        good: Which are finite at every checkpoint, shape ``(example,)``, bool.
        values: By name, shape ``(checkpoint, example)``.
    """

    start: int
    good: np.ndarray
    values: dict[str, np.ndarray]


def columns(store: RunStore, names: Sequence[str]) -> Iterator[Columns]:
    """Yield the named columns of every partition of the training set, in order."""
    checkpoints = range(len(store.manifest["checkpoints"]))
    for partition in range(partition_count(store, "train")):
        receipts = [store.receipt(collect_stage("train", c), partition) for c in checkpoints]
        present = [receipt for receipt in receipts if receipt is not None]
        assert len(present) == len(receipts), "the stage checks that every partition is there"
        flags = np.stack([store.read(receipt, "flags") for receipt in present])
        values = {
            name: np.stack([store.read(receipt, name) for receipt in present]) for name in names
        }
        yield Columns(present[0].start, (flags == 0).all(axis=0), values)


def has_column(store: RunStore, example_set: str, name: str) -> bool:
    """Return whether a set's examples have such a column, by its first partition."""
    receipt = store.receipt(collect_stage(example_set, 0), 0)
    return receipt is not None and name in array_names(receipt)


def column(store: RunStore, example_set: str, name: str) -> np.ndarray:
    """Return a column of a whole set at its first checkpoint; for query sets, which are small."""
    receipts = store.receipts(collect_stage(example_set, 0))
    return np.concatenate([store.read(receipts[p], name) for p in sorted(receipts)])
