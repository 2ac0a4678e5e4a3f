"""Named arrays in .npz or .npy shards.

    reader = "arrays"
    path = "data/train-*.npz"               # or a list; or, for .npy files, one a field:
    # path = { image = "data/x-*.npy", label = "data/y-*.npy" }

Files are sorted naturally (``x-2`` before ``x-10``); the k-th files of all fields are
shard k. Headers of all shards are read once, the data of a shard only when rows of it
are asked for. Save with ``numpy.savez`` (stored members are mapped in place);
``savez_compressed`` works, but a shard is then decompressed whole and the last two are kept.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from streamfluence.data import _files, _options
from streamfluence.data._alike import (
    EVERY_FIELD,
    Shard,
    check_alike,
    headers_of,
    kind_of,
    length_of,
)
from streamfluence.data._files import readable
from streamfluence.data._ids import texts, whole
from streamfluence.data._preview import Text, one_line, show
from streamfluence.data._shards import Shards, check_rows
from streamfluence.data.base import Reader
from streamfluence.errors import InputError
from streamfluence.given import read_json

Layout = list[dict[str, Path]]
KEPT_SHARDS = 2


class Arrays(Reader):
    """Read fields of array shards.

    Args:
        root: The job's folder.
        path: Pattern, list of patterns, or (for .npy) table from field to pattern.
        fields: What a batch holds; by default every field but the id and the group.
        id_field: Whole numbers or strings, one an example: the user's own ids.
        group_field: Whole numbers, one an example: the group (class, source) of each.
        group_names: A .json file with the list of group names by number.
        preview: Fields that show an example to a person; by default those of a batch.
        text: How previewed whole-number fields decode: "bytes", or a .json vocabulary.

    Raises:
        InputError: On a wrong option, and at first use on a file that is missing, damaged or
            unlike the others.
    """

    places = ("path", "group_names", "text")

    def __init__(
        self,
        root: Path,
        *,
        path: str | Sequence[str] | Mapping[str, str],
        fields: Sequence[str] | None = None,
        id_field: str | None = None,
        group_field: str | None = None,
        group_names: str | None = None,
        preview: Sequence[str] | None = None,
        text: str | None = None,
    ) -> None:
        self._root = root
        self._path = path
        self._chosen = None if fields is None else _options.strings("fields", fields)
        self._id_field = None if id_field is None else _options.text("id_field", id_field)
        self._group_field = (
            None if group_field is None else _options.text("group_field", group_field)
        )
        self._previewed = None if preview is None else _options.strings("preview", preview)
        self._group_names = [] if group_names is None else _names(root, group_names)
        self._text = None if text is None else Text(root, _options.text("text", text))
        self._shown = [root / name for name in (group_names, text) if name not in (None, "bytes")]
        self._decompressed = lru_cache(KEPT_SHARDS)(_nothing_yet)

    def count(self) -> int:
        """Return the number of examples of all shards."""
        return self._rows.count

    def read(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Return rows ``start`` to ``stop``, one array a field: copies in this machine's byte order."""
        return {field: self._read(field, start, stop) for field in self._fields}

    def take(self, rows: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Return the examples of ``rows``, in this order."""
        checked = check_rows(rows, self.count())
        return {field: self._take(field, checked) for field in self._fields}

    def identity(self) -> dict[str, Any]:
        """Return the fields and the digest of every file; reads all bytes once."""
        return {
            "reader": "arrays",
            "fields": self._fields,
            "id_field": self._id_field,
            "group_field": self._group_field,
            "count": self.count(),
            "files": _files.file_digests(self._paths),
            **_files.digests_of_shown(self._shown),
        }

    def stat_signature(self) -> list[dict[str, str | int]]:
        """Return sizes and times of the files; while they are equal, ``identity`` need not be redone."""
        return _files.file_signatures([*self._paths, *self._shown])

    def preview(self, row: int) -> str:
        """Return the previewed fields of an example on one line."""
        fields = self._previewed or self._fields
        rows = check_rows([row], self.count())
        shown = [
            show(name, np.asarray(self._take(self._known(name), rows)[0]), self._text)
            for name in fields
        ]
        return one_line(" | ".join(shown))

    def example_ids(self, start: int, stop: int) -> np.ndarray | None:
        """Return the id field of these rows, as int64 or as strings."""
        if self._id_field is None:
            return None
        kind = self._shards[0][self._known(self._id_field)].dtype.kind
        read = self._strings if kind in "US" else self._numbers
        return read(self._id_field, start, stop)

    def groups(self, start: int, stop: int) -> np.ndarray | None:
        """Return the group field of these rows as int64."""
        return None if self._group_field is None else self._numbers(self._group_field, start, stop)

    def group_name(self, group: int) -> str:
        """Return the group's name, or its number where no name is given."""
        known = 0 <= group < len(self._group_names)
        return self._group_names[group] if known else str(group)

    @cached_property
    def _layout(self) -> Layout:
        if isinstance(self._path, Mapping):
            return _files_by_field(self._root, self._path)
        return _files_of_all_fields(self._root, _options.strings("path", self._path))

    @property
    def _paths(self) -> list[Path]:
        return [path for shard in self._layout for path in shard.values()]

    @cached_property
    def _shards(self) -> list[Shard]:
        with ThreadPoolExecutor(8) as pool:  # on shared storage the headers are all latency
            shards = list(pool.map(headers_of, self._layout))
        check_alike(shards, self._id_field)
        return shards

    @cached_property
    def _rows(self) -> Shards:
        return Shards([length_of(shard) for shard in self._shards])

    @cached_property
    def _fields(self) -> list[str]:
        apart = (self._id_field, self._group_field)
        chosen = self._chosen or [name for name in self._shards[0] if name not in apart]
        if not chosen:
            raise InputError(f"{self._paths[0]} holds no field but the id and the group")
        return [self._known(field) for field in chosen]

    def _known(self, field: str) -> str:
        if field not in self._shards[0]:
            there = ", ".join(self._shards[0])
            raise InputError(f"{self._paths[0]} has no field {field!r}; there are: {there}")
        return field

    def _read(self, field: str, start: int, stop: int) -> np.ndarray:
        rows, filled = self._empty(field, stop - start), 0
        for shard, first, last in self._rows.pieces(start, stop):
            rows[filled : filled + last - first] = self._array(shard, field)[first:last]
            filled += last - first
        return rows

    def _take(self, field: str, rows: np.ndarray) -> np.ndarray:
        taken = self._empty(field, len(rows))
        for shard, positions, local in self._rows.locate(rows):
            taken[positions] = self._array(shard, field)[local]
        return taken

    def _empty(self, field: str, length: int) -> np.ndarray:
        first = self._shards[0][field]
        return np.empty((max(length, 0), *first.shape[1:]), dtype=first.dtype.newbyteorder("="))

    def _array(self, shard: int, field: str) -> np.ndarray:
        stored = self._shards[shard][field]
        if stored.member is None:
            return stored.view()
        kept = self._decompressed(shard)
        if field not in kept:
            kept[field] = stored.view()
        return kept[field]

    def _numbers(self, field: str, start: int, stop: int) -> np.ndarray:
        first = self._shards[0][self._known(field)]
        if len(first.shape) != 1 or first.dtype.kind not in "biu":
            raise InputError(
                f"{first.path}: field {field!r} must hold one whole number an example, but is "
                f"{kind_of(first)}"
            )
        return whole(self._read(field, start, stop), f"{first.path}: field {field!r}")

    def _strings(self, field: str, start: int, stop: int) -> np.ndarray:
        first = self._shards[0][field]
        if len(first.shape) != 1:
            raise InputError(
                f"{first.path}: field {field!r} must hold one string an example, but is {kind_of(first)}"
            )
        parts = [
            texts(
                self._array(shard, field)[begin:end],
                f"{self._shards[shard][field].path}: field {field!r}",
            )
            for shard, begin, end in self._rows.pieces(start, stop)
        ]
        return np.concatenate(parts) if parts else np.empty(0, "U1")


def _nothing_yet(_shard: int) -> dict[str, np.ndarray]:
    return {}


def _files_of_all_fields(root: Path, patterns: Sequence[str]) -> Layout:
    paths = _files.expand(root, patterns)
    for path in paths:
        if path.suffix != ".npz":
            raise InputError(
                f"{path} is not an .npz file; the field of .npy files must be named, as in "
                f'path = {{ image = "x-*.npy" }}'
            )
    return [{EVERY_FIELD: path} for path in paths]


def _files_by_field(root: Path, patterns: Mapping[str, Any]) -> Layout:
    listed = {
        field: _files.expand(root, _options.strings(f"path.{field}", pattern))
        for field, pattern in patterns.items()
    }
    if len({len(paths) for paths in listed.values()}) != 1:
        counts = ", ".join(f"{field}: {len(paths)}" for field, paths in listed.items()) or "none"
        raise InputError(f"every field of `path` needs one file a shard, but they match {counts}")
    return [dict(zip(listed, paths, strict=True)) for paths in zip(*listed.values(), strict=True)]


def _names(root: Path, name: str) -> list[str]:
    path = root / _options.text("group_names", name)
    with readable(path):
        content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(each, str) for each in content):
        raise InputError(
            f"{path} must be a JSON list of group names, in the order of their numbers"
        )
    return content
