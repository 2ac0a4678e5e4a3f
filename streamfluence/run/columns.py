"""The small stored columns of the examples of a set: streamed by partition, or of chosen rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from streamfluence.columns import FLAGS
from streamfluence.layout import collect_stage
from streamfluence.run.opened import OpenRun
from streamfluence.run.rows import row_receipts
from streamfluence.store import Receipt, array_names
from streamfluence.store.text import decode_ids


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


def columns(run: OpenRun, names: Sequence[str]) -> Iterator[Columns]:
    """Yield the named columns of every partition of the training set, in order."""
    checkpoints = run.checkpoints
    for receipts in zip(*(row_receipts(run, "train", c) for c in checkpoints), strict=True):
        flags = np.stack([run.read(receipt, FLAGS) for receipt in receipts])
        values = {
            name: np.stack([column_of(run, receipt, name) for receipt in receipts])
            for name in names
        }
        yield Columns(receipts[0].start, (flags == 0).all(axis=0), values)


def has_column(run: OpenRun, example_set: str, name: str) -> bool:
    """Return whether a set's examples have such a column, by its first partition."""
    receipt = run.receipt(collect_stage(example_set, 0), 0)
    return receipt is not None and name in array_names(receipt)


def column(run: OpenRun, example_set: str, name: str) -> np.ndarray:
    """Return a column of a whole set at its first checkpoint; for query sets, which are small."""
    receipts = row_receipts(run, example_set, 0)
    return np.concatenate([column_of(run, receipt, name) for receipt in receipts])


def set_values(run: OpenRun, example_set: str, name: str, rows: np.ndarray) -> np.ndarray | None:
    """Return a column at the first checkpoint of some rows, or None where the set has none.

    Args:
        rows: Sorted; no partition is read twice.
    """
    owners = run.example_set(example_set).owners(rows)
    chosen = np.unique(owners).tolist()
    receipts = row_receipts(run, example_set, 0, chosen)
    if any(name not in array_names(receipt) for receipt in receipts):
        return None
    pieces = [
        column_of(run, receipt, name)[rows[owners == receipt.partition] - receipt.start]
        for receipt in receipts
    ]
    return np.concatenate(pieces) if pieces else np.empty(0, np.int64)


def column_of(run: OpenRun, receipt: Receipt, name: str) -> np.ndarray:
    """Return a column of one partition, one value an example; text as strings."""
    return decode_ids(run.read(receipt, name))
