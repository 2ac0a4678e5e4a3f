"""JSON lines: a file of one JSON object a line, which is one example.

    reader = "jsonl"
    path = "data/train-*.jsonl"
    tokenizer = "model"                     # if the batch is to hold tokens
    prompt_field = "question"               # or text_field = "text"
    completion_field = "answer"
    length = 128

Columns are the keys of the first 1,000 objects, with the types that fit all of those; an
object of which a value that is needed has another type, or is missing, is refused by its
line. A column of numbers with a fraction in any of them takes whole numbers as well. Objects
inside become mappings, and ``"meta.file"`` names what is in one. Needs the extra `text`.
"""

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from streamfluence.data import _arrow, _files, _options
from streamfluence.data._lines import Lines
from streamfluence.data._shards import Shards
from streamfluence.data._text_like import TextLike
from streamfluence.errors import InputError

_LOOKED_AT = 1000  # lines that say which columns there are

pa = _arrow.pa
_UNFIT = (pa.ArrowException, OverflowError, ValueError, TypeError)  # what no column can be made of


class Jsonl(TextLike):
    """Read objects of JSON lines.

    Args:
        root: The job's folder.
        path: Pattern or list of patterns.
        further: Of ``TextLike``.

    Raises:
        InputError: On a wrong option, and at first use on a line that is no JSON object.
    """

    name = "jsonl"
    places = ("path", "tokenizer")

    def __init__(self, root: Path, *, path: str | Sequence[str], **further: Any) -> None:
        super().__init__(root, **further)
        self._patterns = _options.strings("path", path)

    def count(self) -> int:
        """Return the number of lines of all files."""
        return self._rows.count

    @cached_property
    def _paths(self) -> list[Path]:
        return _files.expand(self._root, self._patterns)

    @cached_property
    def _files(self) -> list[Lines]:
        return [Lines(path) for path in self._paths]

    @cached_property
    def _rows(self) -> Shards:
        return Shards([lines.count for lines in self._files])

    @cached_property
    def _schema(self) -> Any:
        first = np.arange(min(_LOOKED_AT, self.count()))
        objects = [
            value
            for file, _, local in self._rows.locate(first)
            for value in self._objects(file, local)
        ]
        keys = dict.fromkeys(key for value in objects for key in value)
        return pa.schema([(key, self._type(key, objects)) for key in keys])

    def _type(self, key: str, objects: list[dict[str, Any]]) -> Any:
        try:
            return pa.array([value.get(key) for value in objects]).type
        except _UNFIT as error:
            raise InputError(
                f"{self._paths[0]}: the first {len(objects):,} objects differ in what {key!r} is "
                f"({error}); write it alike in all lines"
            ) from error

    def _tables(self, columns: list[str], rows: np.ndarray) -> Iterator[Any]:
        for file, _, local in self._rows.locate(rows):
            objects = list(self._objects(file, local))
            arrays = [self._column(name, file, local, objects) for name in columns]
            yield pa.Table.from_arrays(arrays, names=columns)

    def _column(self, name: str, file: int, rows: np.ndarray, objects: list[dict[str, Any]]) -> Any:
        kind, values = self._schema.field(name).type, [value.get(name) for value in objects]
        if _fits(values, kind):
            return pa.array(values, kind)
        wrong = next(place for place, value in enumerate(values) if not _fits([value], kind))
        raise InputError(
            f"line {rows[wrong] + 1:,} of {self._files[file].path}: {name!r} is {_arrow.said(kind)} in the "
            f"first lines, but {repr(values[wrong])[:60]} here; write it alike in all lines (numbers with "
            f"a fraction, 1.0, from the first on)"
        )

    def _objects(self, file: int, rows: np.ndarray) -> Iterator[dict[str, Any]]:
        lines = self._files[file]
        for row, line in zip(rows.tolist(), lines.read(rows), strict=True):
            try:
                value = json.loads(lines.text(line, row))
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"line {row + 1:,} of {lines.path} is no JSON that can be read: {error}"
                ) from error
            if not isinstance(value, dict):
                raise InputError(
                    f"line {row + 1:,} of {lines.path} holds {type(value).__name__}, but every line must "
                    f"hold one JSON object"
                )
            yield value


def _fits(values: list[Any], kind: Any) -> bool:
    """Return whether values are of a type: Arrow itself would cut 0.5 to 0 and drop what it knows not."""
    try:
        return _may_be(pa.array(values).type, kind)
    except _UNFIT:
        return False


def _may_be(found: Any, kind: Any) -> bool:
    """Return whether values of one type are values of another: whole numbers among fractions, no value."""
    types = _arrow.types
    if types.is_list(found) and types.is_list(kind):
        return _may_be(found.value_type, kind.value_type)
    if types.is_struct(found) and types.is_struct(kind):
        names = [field.name for field in found if kind.get_field_index(field.name) >= 0]
        return all(_may_be(found.field(name).type, kind.field(name).type) for name in names)
    whole = types.is_integer(found) and types.is_floating(kind)
    return bool(found == kind or whole or types.is_null(found))
