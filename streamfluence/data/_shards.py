"""Find global rows in a sequence of shards. Pure arithmetic."""

from collections.abc import Iterator, Sequence

import numpy as np

from streamfluence.errors import InputError


class Shards:
    """Shards of ``lengths`` rows laid end to end; any of them may be empty."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.starts = np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))])
        self.count = int(self.starts[-1])

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield ``(shard, start in it, stop in it)`` for every shard that rows start:stop touch.

        Raises:
            InputError: If the rows are not in the data set.
        """
        check_range(start, stop, self.count)
        shard = int(np.searchsorted(self.starts, start, side="right")) - 1
        while start < stop:
            first, end = int(self.starts[shard]), int(self.starts[shard + 1])
            if start < end:
                yield shard, start - first, min(stop, end) - first
                start = min(stop, end)
            shard += 1

    def locate(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield ``(shard, positions in rows, rows inside the shard)`` for every shard touched."""
        owners = np.searchsorted(self.starts, rows, side="right") - 1
        for shard in np.unique(owners):
            positions = np.flatnonzero(owners == shard)
            yield int(shard), positions, rows[positions] - self.starts[shard]


def check_range(start: int, stop: int, count: int) -> None:
    """Raise InputError unless ``0 <= start <= stop <= count``."""
    if not 0 <= start <= stop <= count:
        raise InputError(f"rows {start} to {stop} were asked of a data set of {count:,} examples")


def check_rows(rows: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
    """Return ``rows`` as int64, or raise InputError if one of them does not exist."""
    checked = np.asarray(rows, dtype=np.int64).reshape(-1)
    outside = checked[(checked < 0) | (checked >= count)]
    if len(outside):
        raise InputError(
            f"row {int(outside[0])} was asked of a data set of {count:,} examples "
            f"(rows count from 0)"
        )
    return checked
