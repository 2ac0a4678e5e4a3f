"""Stored rows as they are read: a block at a time for a product, or a partition in numbers."""

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch

from streamfluence.codecs.base import Encoded
from streamfluence.columns import FLAGS, GROUP, LOSS, ROWS, SCALE, SELF_INFLUENCE
from streamfluence.run.decision import load_codec
from streamfluence.run.rows import StoredRows
from streamfluence.scoring.terms import RowBlock
from streamfluence.store import Receipt, array_names
from streamfluence.store.run_store import RunStore


class PartitionRows:
    """The rows of some partitions of the training set at one checkpoint, read a block at a time.

    Args:
        receipts: Of the partitions, in order; see ``StoredRows.receipts``.
        needs: What of them is read, see ``Readout.needs``; scores need codes and scales, as rows do.
        columns: Names of columns that a scale looks at.
    """

    def __init__(
        self,
        run: RunStore,
        receipts: Sequence[Receipt],
        needs: Collection[str],
        columns: Sequence[str] = (),
    ) -> None:
        self.run, self.receipts, self.columns = run, receipts, tuple(columns)
        self.with_codes = "scores" in needs or "rows" in needs
        scale = (SCALE,) if self.with_codes else ()
        known = (SELF_INFLUENCE, LOSS, GROUP) if "columns" in needs else ()
        own = (SELF_INFLUENCE,) if "self_influence" in needs else ()
        self._small = dict.fromkeys((FLAGS, *scale, *known, *own, *columns))

    def blocks(self, block_rows: int) -> Iterator[RowBlock]:
        for receipt in self.receipts:
            small = {
                name: self.run.read(receipt, name)
                for name in self._small
                if name in array_names(receipt)
            }
            start, count, done = receipt.start, len(small[FLAGS]), 0
            codes = self.run.read_blocks(receipt, ROWS, block_rows) if self.with_codes else None
            while done < count:
                stop = min(done + block_rows, count)
                part = {name: array[done:stop] for name, array in small.items()}
                yield RowBlock(
                    start=start + done,
                    codes=None if codes is None else next(codes),
                    scale=part.get(SCALE),
                    flags=part[FLAGS],
                    self_influence=part.get(SELF_INFLUENCE),
                    loss=part.get(LOSS),
                    group=part.get(GROUP),
                    columns={name: part[name] for name in self.columns},
                )
                done = stop


def decoded_rows(rows: StoredRows, partition: int) -> np.ndarray:
    """Return the rows of one partition in stored coordinates, float32, shape ``(example, coordinate)``.

    Training rows are decoded; queries are rotated as training rows are before they are stored, so
    inner products of both are the scores of this checkpoint times n.
    """
    run = rows.run
    (receipt,) = rows.receipts([partition])
    stored = torch.from_numpy(run.read(receipt, ROWS))
    codec, _ = load_codec(run, rows.checkpoint)
    if rows.example_set != "train":
        return codec.query(stored).numpy()
    scale = torch.from_numpy(run.read(receipt, SCALE))
    return codec.decode(Encoded(stored, scale)).numpy()
