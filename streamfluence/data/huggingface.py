"""A folder that ``datasets`` of Hugging Face wrote by ``save_to_disk``.

    reader = "huggingface"
    path = "data/reviews"
    split = "train"                         # where the folder holds several
    tokenizer = "model"                     # if the batch is to hold tokens
    text_field = "text"
    length = 128

Its Arrow files are mapped, not loaded. Groups of a column of classes have the names of those
classes. Images and audio inside are no arrays: leave them out by `fields`. Needs the extra
`huggingface`; the package ``datasets`` itself is not imported.
"""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from streamfluence.data import _arrow, _options
from streamfluence.data._files import readable
from streamfluence.data._shards import Shards
from streamfluence.data._text_like import TextLike
from streamfluence.data._wanted import wanted
from streamfluence.errors import InputError
from streamfluence.given import read_json

pa, ipc = _arrow.pa, wanted("pyarrow.ipc", "huggingface")

_STATE, _SPLITS = "state.json", "dataset_dict.json"


class Huggingface(TextLike):
    """Read a data set that was saved to disk.

    Args:
        root: The job's folder.
        path: The folder.
        split: Which part of a folder that holds several.
        further: Of ``TextLike``.

    Raises:
        InputError: On a wrong option, and at first use on a folder or file that ``datasets`` did not
            write.
    """

    name = "huggingface"
    places = ("path", "tokenizer")

    def __init__(self, root: Path, *, path: str, split: str | None = None, **further: Any) -> None:
        super().__init__(root, **further)
        self._path, self._split = root / _options.text("path", path), split

    def count(self) -> int:
        """Return the number of rows of all files."""
        return self._rows.count

    def group_name(self, group: int) -> str:
        """Return the name of the class, or the group as the column has it."""
        names = self._classes.get(str(self._group_field), [])
        return str(names[group]) if 0 <= group < len(names) else super().group_name(group)

    @cached_property
    def _folder(self) -> Path:
        """The folder of one split."""
        several = self._path / _SPLITS
        if not several.is_file():
            if self._split is not None:
                raise InputError(f"{self._path} holds no splits; leave out `split`")
            return self._path
        splits = _entry(several, "splits")
        if self._split not in splits:
            raise InputError(f"{self._path} holds {', '.join(splits)}; name one: split = NAME")
        return self._path / str(self._split)

    @cached_property
    def _paths(self) -> list[Path]:
        state = self._folder / _STATE
        if not state.is_file():
            raise InputError(
                f"{self._folder} holds no {_STATE}; `path` must name a folder written by save_to_disk"
            )
        names = [each["filename"] for each in _entry(state, "_data_files")]
        if not names or any(Path(name).name != name for name in names):
            raise InputError(f"{state} names no data files beside it; save the data set again")
        return [self._folder / name for name in names]

    @cached_property
    def _tables_of_files(self) -> list[Any]:
        return [_mapped(path) for path in self._paths]

    @cached_property
    def _pieces(self) -> list[Any]:
        """Every record batch of all files: to take rows of a whole table would copy its columns."""
        return [piece for table in self._tables_of_files for piece in table.to_batches()]

    @cached_property
    def _rows(self) -> Shards:
        return Shards([piece.num_rows for piece in self._pieces])

    @cached_property
    def _schema(self) -> Any:
        return self._tables_of_files[0].schema

    @cached_property
    def _classes(self) -> dict[str, list[str]]:
        """The names of classes by column, as ``datasets`` keeps them beside the types."""
        kept = json.loads((self._schema.metadata or {}).get(b"huggingface", b"{}"))
        features = (kept.get("info") or {}).get("features") or {}
        return {name: of["names"] for name, of in features.items() if "names" in of}

    def _tables(self, columns: list[str], rows: np.ndarray) -> Iterator[Any]:
        parts = [
            _arrow.rows_of(self._pieces[place].select(columns), local)
            for place, _, local in self._rows.locate(rows)
        ]
        with readable(self._folder):  # files of one data set have one schema
            table = pa.Table.from_batches(parts)
        yield table


def _mapped(path: Path) -> Any:
    """Return the table of an Arrow stream, its columns views of the mapped file."""
    with readable(path), ipc.open_stream(pa.memory_map(str(path))) as stream:
        return stream.read_all()


def _entry(path: Path, key: str) -> Any:
    with readable(path):
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f"it has no list {key!r}")
        return content[key]
