"""Several readers as one: the generations of an example set, laid end to end."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from streamfluence.data._batches import concatenate, select_batch
from streamfluence.data._shards import Shards, check_rows
from streamfluence.data.base import Batch, Reader
from streamfluence.errors import InputError

_MOST_GROUPS = 1 << 32  # of one reader whose groups are its own; larger numbers say which reader's


def together(readers: Sequence[Reader]) -> Reader:
    """Return one reader of the examples of all, in order."""
    return readers[0] if len(readers) == 1 else Together(readers)


class Together(Reader):
    """Read from several readers, whose examples are numbered on from one to the next."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self._readers = readers
        self._rows = Shards([reader.count() for reader in readers])

    def count(self) -> int:
        """Return the number of examples of all."""
        return self._rows.count

    def read(self, start: int, stop: int) -> Batch:
        """Return examples ``start`` to ``stop``."""
        if start == stop:
            return self._readers[0].read(0, 0)
        parts = [self._readers[i].read(*span) for i, *span in self._rows.pieces(start, stop)]
        return parts[0] if len(parts) == 1 else concatenate(parts)

    def take(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """Return the examples of these rows, in this order."""
        checked = check_rows(rows, self.count())
        found = list(self._rows.locate(checked))
        parts = [self._readers[reader].take(local) for reader, _, local in found]
        if len(parts) <= 1:
            return parts[0] if parts else self._readers[0].take(checked)
        order = np.argsort(np.concatenate([positions for _, positions, _ in found]))
        return select_batch(concatenate(parts), order)

    def identity(self) -> Mapping[str, Any]:
        """Return the identities of all."""
        return {"generations": [dict(reader.identity()) for reader in self._readers]}

    def stat_signature(self) -> Any:
        """Return the signatures of all."""
        return [reader.stat_signature() for reader in self._readers]

    def preview(self, row: int) -> str | None:
        """Return what shows the example to a person."""
        ((reader, start, _),) = self._rows.pieces(row, row + 1)
        return self._readers[reader].preview(start)

    def example_ids(self, start: int, stop: int) -> np.ndarray | None:
        """Return the ids of these rows; InputError where only some have any."""
        return self._labels(start, stop, lambda reader, *span: reader.example_ids(*span))

    def groups(self, start: int, stop: int) -> np.ndarray | None:
        """Return the groups of these rows; those that a reader numbered by itself are apart from others."""

        def groups(reader: Reader, first: int, last: int) -> np.ndarray | None:
            found = reader.groups(first, last)
            number = self._readers.index(reader) if reader.own_groups else 0
            return None if found is None else found + number * _MOST_GROUPS

        return self._labels(start, stop, groups)

    def group_name(self, group: int) -> str:
        """Return what a person calls this group."""
        number, own = divmod(group, _MOST_GROUPS)
        if 0 < number < len(self._readers) and self._readers[number].own_groups:
            return self._readers[number].group_name(own)
        return self._readers[0].group_name(group)

    def _labels(
        self, start: int, stop: int, of: Callable[[Reader, int, int], np.ndarray | None]
    ) -> np.ndarray | None:
        parts = [of(self._readers[i], *span) for i, *span in self._rows.pieces(start, stop)]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts) and found:
            raise InputError(
                f"of the rows {start} to {stop} some have ids or groups and some have none; name the field "
                f"of every generation of the set, or of none"
            )
        return np.concatenate(found) if found else None
