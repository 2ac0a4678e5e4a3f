"""Parquet files, read by row groups and only in the columns that are asked for.

    reader = "parquet"
    path = "data/train-*.parquet"           # or a list; files are sorted naturally
    fields = ["x", "label"]                 # what a batch holds; by default every column
    id_field = "id"
    # tokenizer = "model"                   # tokenises a column of text, or two:
    # text_field = "text"                   # prompt_field = "question", completion_field = "answer"
    # length = 128                          # tokens of every example

Numbers become arrays, lists of numbers of one length arrays with an axis more, strings
lists of strings, structs mappings. Types that have no array (decimals, maps) and missing
values (null) are refused. A row group is read forward in small pieces, so memory does not
depend on its size, but a row at its end costs reading it: write groups of some ten thousand
rows. Needs the extra `parquet`.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from streamfluence.data import _arrow, _files, _options
from streamfluence.data._files import readable
from streamfluence.data._shards import Shards
from streamfluence.data._text_like import TextLike
from streamfluence.data._wanted import wanted
from streamfluence.errors import InputError

parquet = wanted("pyarrow.parquet", "parquet")

_PIECE_BYTES = 4 << 20  # of the columns that are read, before encoding
_MOST_PIECE_ROWS = 4096
_BUFFER_BYTES = 1 << 16  # read ahead of each column, in place of the whole column


class Parquet(TextLike):
    """Read columns of Parquet files.

    Args:
        root: The job's folder.
        path: Pattern or list of patterns.
        further: Of ``TextLike``.

    Raises:
        InputError: On a wrong option, and at first use on a file that is missing, damaged or
            unlike the others.
    """

    name = "parquet"
    places = ("path", "tokenizer")

    def __init__(self, root: Path, *, path: str | Sequence[str], **further: Any) -> None:
        super().__init__(root, **further)
        self._patterns = _options.strings("path", path)
        self._forward: dict[tuple[str, ...], _Forward] = {}

    def count(self) -> int:
        """Return the number of rows of all files."""
        return self._rows.count

    @cached_property
    def _paths(self) -> list[Path]:
        return _files.expand(self._root, self._patterns)

    @cached_property
    def _footers(self) -> list[Any]:
        with ThreadPoolExecutor(8) as pool:  # on shared storage the footers are all latency
            return list(pool.map(_footer, self._paths))

    @cached_property
    def _groups(self) -> list[tuple[int, int, int]]:
        """File, number in it, and rows of every row group."""
        return [
            (file, group, footer.row_group(group).num_rows)
            for file, footer in enumerate(self._footers)
            for group in range(footer.num_row_groups)
        ]

    @cached_property
    def _rows(self) -> Shards:
        return Shards([rows for _, _, rows in self._groups])

    @cached_property
    def _schema(self) -> Any:
        schemas = [_schema_of(*each) for each in zip(self._paths, self._footers, strict=True)]
        for path, schema in zip(self._paths, schemas, strict=True):
            self._refuse_unlike(path, schema, schemas[0])
        return schemas[0]

    def _refuse_unlike(self, path: Path, schema: Any, first: Any) -> None:
        named = self._named if self._chosen else [*first.names, *self._named]
        tops = {_arrow.top_of(first, name) for name in named}
        for name in sorted(filter(None, tops)):
            if name not in schema.names:
                raise InputError(f"{path} has no column {name!r}, which {self._paths[0]} has")
            kind, expected = (_arrow.said(each.field(name).type) for each in (schema, first))
            if kind != expected:
                raise InputError(
                    f"{path}: column {name!r} is {kind}, but {expected} in {self._paths[0]}; write "
                    f"it alike in all files, or leave it out by `fields`"
                )

    def _tables(self, columns: list[str], rows: np.ndarray) -> Iterator[Any]:
        for place, _, local in self._rows.locate(rows):
            file, group, _ = self._groups[place]
            reading = self._forward.get(tuple(columns))
            if reading is None or not reading.reaches(file, group, int(local[0])):
                reading = _Forward(self._paths[file], file, group, columns)
                self._forward[tuple(columns)] = reading
            with readable(self._paths[file]):
                table = reading.rows(local)
            yield table


class _Forward:
    """Rows of one row group, read from the first to the last; going back means to begin again."""

    def __init__(self, path: Path, file: int, group: int, columns: list[str]) -> None:
        self._at = (file, group)
        with readable(path):
            opened = parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
            size = _piece_rows(opened.metadata.row_group(group), columns)
            self._pieces = opened.iter_batches(
                size, row_groups=[group], columns=columns, use_threads=False
            )
        self._piece: Any = None
        self._start = self._stop = 0

    def reaches(self, file: int, group: int, row: int) -> bool:
        """Return whether a row of a group can be read without beginning again."""
        return self._at == (file, group) and row >= self._start

    def rows(self, local: np.ndarray) -> Any:
        """Return a table of these rows of the group, which ascend."""
        parts, done = [], 0
        while done < len(local):
            upto = int(np.searchsorted(local, self._stop))
            if upto > done:
                parts.append(_arrow.rows_of(self._piece, local[done:upto] - self._start))
                done = upto
            else:
                self._go_on()
        return _arrow.pa.Table.from_batches(parts)

    def _go_on(self) -> None:
        self._piece = None  # or two would be held
        piece = next(self._pieces, None)
        if piece is None:
            raise ValueError(f"a row group ends after {self._stop:,} rows, fewer than it promises")
        self._piece, self._start = piece, self._stop
        self._stop += piece.num_rows


def _piece_rows(group: Any, columns: list[str]) -> int:
    """Return how many rows of a group are read at once."""
    leaves = [group.column(place) for place in range(group.num_columns)]
    chosen = [leaf for leaf in leaves if leaf.path_in_schema.partition(".")[0] in columns]
    wide = sum(leaf.total_uncompressed_size for leaf in chosen) / max(group.num_rows, 1)
    return int(min(max(_PIECE_BYTES / max(wide, 1), 1), _MOST_PIECE_ROWS))


def _footer(path: Path) -> Any:
    with readable(path):
        return parquet.read_metadata(path)


def _schema_of(path: Path, footer: Any) -> Any:
    with readable(path):
        schema = footer.schema.to_arrow_schema()
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise InputError(f"{path} has two columns called {twice[0]!r}; name every column once")
    return schema
