"""Plain text: every line of a file is one example, or every file is.

    reader = "text"
    path = "books/*.txt"
    unit = "line"                           # or "file"
    tokenizer = "model"                     # if the batch is to hold tokens
    length = 128

A batch is ``{"text": [...]}``, or tokens. Lines are counted as editors do, empty ones too. The
group of a line is its file; of a file its folder, and its id is its path below the folder
that holds all. Files are UTF-8. Needs the extra `text`.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from streamfluence.data import _arrow, _files, _options
from streamfluence.data._files import readable
from streamfluence.data._lines import Lines
from streamfluence.data._shards import Shards, check_range
from streamfluence.data._text_like import TextLike
from streamfluence.errors import InputError

_FIELD = "text"

pa = _arrow.pa


class Text(TextLike):
    """Read lines of text files, or whole files.

    Args:
        root: The job's folder.
        path: Pattern or list of patterns.
        unit: What an example is: "line" or "file".
        tokenizer: Folder of a model or tokenizer as transformers saves it, with a tokenizer.json; no
            code is loaded and nothing downloaded.
        length: Tokens of every example: longer texts are cut, shorter ones padded.
        end_token: Add the end-of-text token, as training may have done.

    Raises:
        InputError: On a wrong option, and at first use on a file that is missing or no UTF-8.
    """

    name = "text"
    places = ("path", "tokenizer")
    own_groups = True

    def __init__(
        self,
        root: Path,
        *,
        path: str | Sequence[str],
        unit: Literal["line", "file"] = "line",
        tokenizer: str | None = None,
        length: int | None = None,
        end_token: bool = False,
    ) -> None:
        field = None if tokenizer is None else _FIELD
        tokens: dict[str, Any] = {"tokenizer": tokenizer, "text_field": field}
        super().__init__(root, length=length, end_token=end_token, **tokens)
        self._patterns, self._unit = _options.strings("path", path), unit

    def count(self) -> int:
        """Return the number of lines of all files, or of files."""
        return self._rows.count

    def identity(self) -> dict[str, Any]:
        """Return what an example is, and the digest of every file; reads all bytes once."""
        names = hashlib.sha256("\0".join(self._names).encode("utf-8", "surrogateescape"))
        return super().identity() | {"unit": self._unit, "names": names.hexdigest()}

    def preview(self, row: int) -> str:
        """Return the example's text on one line, or where it is if it is empty."""
        return (
            super().preview(row) or f"(empty, {self.group_name(int(self.groups(row, row + 1)[0]))})"
        )

    def example_ids(self, start: int, stop: int) -> np.ndarray | None:
        """Return the names of files that are examples; lines have none but their number."""
        check_range(start, stop, self.count())
        return np.array(self._names[start:stop], np.str_) if self._unit == "file" else None

    def groups(self, start: int, stop: int) -> np.ndarray:
        """Return the file of each line, or the folder of each file, int64."""
        check_range(start, stop, self.count())
        if self._unit == "file":
            return np.searchsorted(
                self._folders, [os.path.dirname(n) for n in self._names[start:stop]]
            )
        return np.searchsorted(self._rows.starts, np.arange(start, stop), side="right") - 1

    def group_name(self, group: int) -> str:
        """Return the name of the file or folder below the folder that holds all."""
        names = self._folders if self._unit == "file" else self._names
        return names[group] or "." if 0 <= group < len(names) else str(group)

    @cached_property
    def _paths(self) -> list[Path]:
        return _files.expand(self._root, self._patterns)

    @cached_property
    def _names(self) -> list[str]:
        """The path of every file below the folder that holds all."""
        above = os.path.commonpath([os.path.abspath(path.parent) for path in self._paths])
        return [os.path.relpath(os.path.abspath(path), above) for path in self._paths]

    @cached_property
    def _folders(self) -> list[str]:
        return sorted({os.path.dirname(name) for name in self._names})

    @cached_property
    def _lines(self) -> list[Lines]:
        return [Lines(path) for path in self._paths]

    @cached_property
    def _rows(self) -> Shards:
        if self._unit == "file":
            return Shards([1] * len(self._paths))
        return Shards([lines.count for lines in self._lines])

    @cached_property
    def _schema(self) -> Any:
        return pa.schema([(_FIELD, pa.large_string())])

    def _tables(self, columns: list[str], rows: np.ndarray) -> Iterator[Any]:
        for file, _, local in self._rows.locate(rows):
            texts = [_whole(self._paths[file])] if self._unit == "file" else self._read(file, local)
            yield pa.table({_FIELD: pa.array(texts, pa.large_string())})

    def _read(self, file: int, rows: np.ndarray) -> list[str]:
        lines = self._lines[file]
        pairs = zip(lines.read(rows), rows.tolist(), strict=True)
        return [lines.text(line, row) for line, row in pairs]


def _whole(path: Path) -> str:
    with readable(path):
        content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text ({error}); convert it to UTF-8") from error
