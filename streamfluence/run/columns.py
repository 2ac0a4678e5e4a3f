"""The small stored columns of the examples of a set: streamed by partition, or of chosen rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from streamfluence.columns import FLAGS
from streamfluence.run.opened import OpenRun
from streamfluence.run.rows import StoredRows, stored_rows
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
    for receipts in zip(*(rows.receipts() for rows in stored_rows(run, "train")), strict=True):
        flags = np.stack([run.read(receipt, FLAGS) for receipt in receipts])
        values = {
            name: np.stack([column_of(run, receipt, name) for receipt in receipts])
            for name in names
        }
        yield Columns(receipts[0].start, (flags == 0).all(axis=0), values)


def has_column(rows: StoredRows, name: str) -> bool:
    """Return whether examples have such a column, by their first partition."""
    receipt = rows.run.receipt(rows.stage, 0)
    return receipt is not None and name in array_names(receipt)


def column(rows: StoredRows, name: str) -> np.ndarray:
    """Return a column of a whole set; for query sets, which are small."""
    return np.concatenate([column_of(rows.run, receipt, name) for receipt in rows.receipts()])


def values_at(rows: StoredRows, name: str, wanted: np.ndarray) -> np.ndarray | None:
    """Return a column of some examples, or None where the set has none.

    Args:
        wanted: Global rows, sorted; no partition is read twice.
    """
    holding = list(rows.holding(wanted))
    if any(name not in array_names(receipt) for receipt, _ in holding):
        return None
    pieces = [
        column_of(rows.run, receipt, name)[wanted[mine] - receipt.start]
        for receipt, mine in holding
    ]
    return np.concatenate(pieces) if pieces else np.empty(0, np.int64)


def column_of(run: OpenRun, receipt: Receipt, name: str) -> np.ndarray:
    """Return a column of one partition, one value an example; text as strings."""
    return decode_ids(run.read(receipt, name))
