"""What readers of tables have in common: columns as fields, ids, groups and previews.

A member says where its rows come from (``_tables``); everything a batch holds is made here.
"""

import threading
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from streamfluence.data import _arrow, _files, _options
from streamfluence.data._batches import concatenate, select_batch, slice_batch
from streamfluence.data._ids import texts, whole
from streamfluence.data._preview import one_line, show_cell
from streamfluence.data._shards import check_range, check_rows
from streamfluence.data.base import Reader
from streamfluence.errors import InputError

_LISTED_NAMES = 20  # of columns, in a message
_BLOCK_ROWS = 8192  # of one column that is read from end to end


class Tabular(Reader):
    """Read columns of a table.

    Args:
        root: The job's folder.
        fields: Columns that a batch holds; by default every one but the id and the group, and beside
            tokens none. A dot leads into a struct, as in ``"meta.file"``.
        id_field: Column of your own ids: whole numbers or strings.
        group_field: Column of each example's group (class, source): whole numbers or strings.
        preview: Columns that show an example to a person; by default those of a batch.
        length: Of lists of numbers: shorter ones are padded (``labels`` with -100, others with 0),
            longer ones cut. Without it all must be equally long.
    """

    name: str  # of the member, as jobs have it

    def __init__(
        self,
        root: Path,
        *,
        fields: Sequence[str] | None = None,
        id_field: str | None = None,
        group_field: str | None = None,
        preview: Sequence[str] | None = None,
        length: int | None = None,
    ) -> None:
        self._root = root
        self._chosen = None if fields is None else _options.strings("fields", fields)
        self._id_field = None if id_field is None else _options.text("id_field", id_field)
        self._group_field = (
            None if group_field is None else _options.text("group_field", group_field)
        )
        self._previewed = None if preview is None else _options.strings("preview", preview)
        self._length = None if length is None else _options.positive("length", length)
        self._reading = threading.RLock()  # a thread reads ahead while ids and groups are asked for

    @cached_property
    def _schema(self) -> Any:
        """The columns and their types, as an Arrow schema."""
        raise NotImplementedError

    @property
    def _paths(self) -> list[Path]:
        """All files whose bytes are the data."""
        raise NotImplementedError

    def _tables(self, columns: list[str], rows: np.ndarray) -> Iterator[Any]:
        """Yield Arrow tables of these columns that hold these rows, which ascend, one after another."""
        raise NotImplementedError

    def columns(self) -> list[str]:
        """Return the names of all columns."""
        return list(self._schema.names)

    @property
    def own_groups(self) -> bool:
        """Whether groups are strings, which are numbered by name among those of this reader."""
        return self._group_field is not None and self._is_text(self._group_field)

    def read(self, start: int, stop: int) -> dict[str, Any]:
        """Return rows ``start`` to ``stop``, one array or list a field."""
        check_range(start, stop, self.count())
        return self._batch(np.arange(start, stop))

    def take(self, rows: Sequence[int] | np.ndarray) -> dict[str, Any]:
        """Return the examples of ``rows``, in this order."""
        distinct, place = np.unique(check_rows(rows, self.count()), return_inverse=True)
        batch = self._batch(distinct)
        found: dict[str, Any] = select_batch(batch, place) if len(distinct) else batch
        return found

    def identity(self) -> dict[str, Any]:
        """Return the fields and the digest of every file; reads all bytes once."""
        return {
            "reader": self.name,
            "fields": self._fields,
            "id_field": self._id_field,
            "group_field": self._group_field,
            "length": self._length,
            "count": self.count(),
            "files": _files.file_digests(self._paths),
        }

    def stat_signature(self) -> Any:
        """Return sizes and times of the files; while they are equal, ``identity`` need not be redone."""
        return _files.file_signatures(self._paths)

    def preview(self, row: int) -> str:
        """Return the previewed columns of an example on one line."""
        names, rows = self._shown, check_rows([row], self.count())
        ((_, columns),) = self._tables_of([self._known(name) for name in names], rows)
        shown = [show_cell(name, columns[name][0].as_py()) for name in names]
        return one_line(" | ".join(shown))

    def example_ids(self, start: int, stop: int) -> np.ndarray | None:
        """Return the id column of these rows, as int64 or as strings."""
        return None if self._id_field is None else self._labels("id", self._id_field, start, stop)

    def groups(self, start: int, stop: int) -> np.ndarray | None:
        """Return the group of these rows, int64; strings are numbered by name."""
        if self._group_field is None:
            return None
        labels = self._labels("group", self._group_field, start, stop)
        return labels if labels.dtype == np.int64 else np.searchsorted(self._group_names, labels)

    def group_name(self, group: int) -> str:
        """Return the group as the column has it."""
        named = self.own_groups and 0 <= group < len(self._group_names)
        return str(self._group_names[group]) if named else str(group)

    @cached_property
    def _fields(self) -> list[str]:
        apart = (self._id_field, self._group_field)
        chosen = self._chosen or [name for name in self._schema.names if name not in apart]
        if not chosen:
            raise InputError(f"{self._paths[0]} holds no column but the id and the group")
        return [self._known(field) for field in chosen]

    @property
    def _needed(self) -> list[str]:
        """Columns of which a batch is made."""
        return self._fields

    @property
    def _shown(self) -> list[str]:
        """Columns that show an example."""
        return self._previewed or self._fields

    @property
    def _named(self) -> list[str]:
        """Columns that the options name."""
        labels = [self._id_field, self._group_field]
        return [*(self._chosen or []), *(self._previewed or []), *filter(None, labels)]

    @cached_property
    def _group_names(self) -> np.ndarray:
        """The distinct names of all groups, in order; reads the column once."""
        field, found = str(self._group_field), np.empty(0, "U1")
        for start in range(0, self.count(), _BLOCK_ROWS):
            labels = self._labels("group", field, start, min(start + _BLOCK_ROWS, self.count()))
            found = np.union1d(found, labels)
        return found

    @cached_property
    def _like(self) -> dict[str, Any]:
        """The first example as a batch, whose shapes all others have."""
        return self._made(np.arange(1), {}) if self.count() else {}

    def _batch(self, rows: np.ndarray) -> dict[str, Any]:
        if not len(rows) and self._like:
            empty: dict[str, Any] = slice_batch(self._like, 0, 0)
            return empty
        return self._made(rows, self._like)

    def _made(self, rows: np.ndarray, like: dict[str, Any]) -> dict[str, Any]:
        parts = [
            self._batch_of(columns, those, like)
            for those, columns in self._tables_of(self._needed, rows)
        ]
        whole_batch: dict[str, Any] = parts[0] if len(parts) == 1 else concatenate(parts)
        return whole_batch

    def _batch_of(
        self, columns: dict[str, Any], rows: np.ndarray, like: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the batch of one table's columns."""
        chosen = {name: columns[name] for name in self._fields}
        return _arrow.batch_of(chosen, rows, like, self._length)

    def _tables_of(
        self, names: list[str], rows: np.ndarray
    ) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """Yield the rows and the columns of one table after another; of no rows one empty table."""
        tops = list(dict.fromkeys(_arrow.top_of(self._schema, name) for name in names))
        with self._reading:
            tables = list(self._tables(tops, rows)) if len(rows) else []
        filled = 0
        for table in tables or [self._schema.empty_table()]:
            those = rows[filled : filled + table.num_rows]
            yield those, {name: _arrow.find(table, name) for name in names}
            filled += table.num_rows

    def _known(self, name: str) -> str:
        if not _arrow.top_of(self._schema, name):
            names = self._schema.names
            near = get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            more = ", ..." if len(names) > _LISTED_NAMES else ""
            listed = ", ".join(names[:_LISTED_NAMES])
            raise InputError(
                f"{self._paths[0]} has no column {name!r}; {hint}there are: {listed}{more}"
            )
        return name

    def _is_text(self, name: str) -> bool:
        return _arrow.is_text(_arrow.type_of(self._schema, self._known(name)))

    def _labels(self, what: str, field: str, start: int, stop: int) -> np.ndarray:
        """Return one whole number or string an example, int64 or of kind ``U``."""
        check_range(start, stop, self.count())
        kind = _arrow.type_of(self._schema, self._known(field))
        where, is_text = f"column {field!r}", self._is_text(field)
        numbers = _arrow.types.is_integer(_arrow.plain(kind)) or _arrow.types.is_boolean(kind)
        if not (is_text or numbers):
            raise InputError(
                f"{where} must give one whole number or string an example as its {what}, but is {kind}"
            )
        parts = [
            _arrow.values_of(columns[field], where, rows)
            for rows, columns in self._tables_of([field], np.arange(start, stop))
        ]
        if is_text:
            return np.concatenate([texts(np.asarray(part, np.str_), where) for part in parts])
        return np.concatenate([whole(part, where) for part in parts])
