"""One long stream of token numbers in flat shards, cut into sequences.

    reader = "tokens"
    path = "data/train-*.npy"            # or .bin, with dtype = "uint16"
    sequence_length = 128

A batch is ``{"tokens": (example, sequence_length) int64}``. Sequences start every
``stride`` tokens of a shard and never cross into the next shard; what is left at a shard's
end is dropped. With ``next_token = true`` a row holds one token more: a task takes
``tokens[:, :-1]`` as inputs and ``tokens[:, 1:]`` as targets, and every token but a shard's
first is a target once.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from streamfluence.data import _files, _options
from streamfluence.data._files import readable
from streamfluence.data._npy import StoredArray, npy_header, npz_headers
from streamfluence.data._preview import Text, one_line
from streamfluence.data._shards import Shards, check_rows
from streamfluence.data.base import Reader
from streamfluence.errors import InputError
from streamfluence.given import read_json

_PREVIEW_TOKENS = 24


class Tokens(Reader):
    """Read sequences of flat token shards.

    Args:
        root: The job's folder.
        path: Pattern or list of patterns of .npy files, or of raw .bin files with ``dtype``.
        sequence_length: Tokens of one example.
        stride: Tokens from the start of one example to that of the next; by default
            ``sequence_length``.
        next_token: Add the token that follows to every example.
        dtype: Whole-number type of raw .bin files, little-endian, such as "uint16".
        text: How a preview decodes: "bytes", or a .json vocabulary.
        documents: A .json or .npz file with ``starts`` (ascending, the first 0: the place of
            every document's first token, counted over all shards in order) and ``names``.

    The group of an example is the document in which it starts, or else its shard.

    Raises:
        InputError: On a wrong option, and at first use on a file that is missing, damaged or
            not a flat array of whole numbers.
    """

    places = ("path", "text", "documents")
    own_groups = True

    def __init__(
        self,
        root: Path,
        *,
        path: str | Sequence[str],
        sequence_length: int,
        stride: int | None = None,
        next_token: bool = False,
        dtype: str | None = None,
        text: str | None = None,
        documents: str | None = None,
    ) -> None:
        self._root = root
        self._patterns = _options.strings("path", path)
        self._length = _options.positive("sequence_length", sequence_length)
        self._stride = self._length if stride is None else _options.positive("stride", stride)
        self._window = self._length + int(_options.flag("next_token", next_token))
        self._dtype = None if dtype is None else _raw_dtype(dtype)
        self._text = None if text is None else Text(root, _options.text("text", text))
        self._shown = [root / text] if text not in (None, "bytes") else []
        self._documents_path = None
        if documents is not None:
            self._documents_path = root / _options.text("documents", documents)

    def count(self) -> int:
        """Return the number of sequences of all shards."""
        return self._rows.count

    def read(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Return sequences ``start`` to ``stop``: ``{"tokens": (example, position) int64}``."""
        parts = [
            self._windows(shard)[first:last].astype(np.int64)
            for shard, first, last in self._rows.pieces(start, stop)
        ]
        empty = np.empty((0, self._window), dtype=np.int64)
        return {"tokens": np.concatenate(parts) if parts else empty}

    def take(self, rows: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Return the sequences ``rows``, in this order."""
        checked = check_rows(rows, self.count())
        taken = np.empty((len(checked), self._window), dtype=np.int64)
        for shard, positions, local in self._rows.locate(checked):
            taken[positions] = self._windows(shard)[local]
        return {"tokens": taken}

    def identity(self) -> dict[str, Any]:
        """Return how the stream is cut and the digest of every file; reads all bytes once."""
        documents = self._documents_path
        return {
            "reader": "tokens",
            "sequence_length": self._length,
            "stride": self._stride,
            "next_token": self._window > self._length,
            "dtype": None if self._dtype is None else self._dtype.name,
            "count": self.count(),
            "files": _files.file_digests(self._paths),
            "documents": None if documents is None else _files.file_digest(documents),
            **_files.digests_of_shown(self._shown),
        }

    def stat_signature(self) -> list[dict[str, str | int]]:
        """Return sizes and times of the files; while they are equal, ``identity`` need not be redone."""
        sidecars = [] if self._documents_path is None else [self._documents_path]
        return _files.file_signatures([*self._paths, *sidecars, *self._shown])

    def preview(self, row: int) -> str:
        """Return the text of a sequence on one line, or its first numbers without ``text``."""
        tokens = self.take([row])["tokens"][0]
        if self._text is not None:
            return one_line(self._text(tokens))
        more = " …" if len(tokens) > _PREVIEW_TOKENS else ""
        return " ".join(map(str, tokens[:_PREVIEW_TOKENS].tolist())) + more

    def groups(self, start: int, stop: int) -> np.ndarray:
        """Return the document in which each of these sequences starts, or its shard, int64."""
        parts = [
            self._groups_of(shard, np.arange(first, last))
            for shard, first, last in self._rows.pieces(start, stop)
        ]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def group_name(self, group: int) -> str:
        """Return the document's name, or the shard's file name."""
        names = [path.name for path in self._paths]
        if self._documents is not None:
            names = self._documents[1]
        return names[group] if 0 <= group < len(names) else str(group)

    @cached_property
    def _paths(self) -> list[Path]:
        return _files.expand(self._root, self._patterns)

    @cached_property
    def _shards(self) -> list[StoredArray]:
        return [_flat(path, self._dtype) for path in self._paths]

    @cached_property
    def _rows(self) -> Shards:
        return Shards([self._sequences(shard.shape[0]) for shard in self._shards])

    @cached_property
    def _token_starts(self) -> np.ndarray:
        """Where each shard starts in the stream."""
        return Shards([shard.shape[0] for shard in self._shards]).starts

    @cached_property
    def _documents(self) -> tuple[np.ndarray, list[str]] | None:
        if self._documents_path is None:
            return None
        return _documents(self._documents_path, int(self._token_starts[-1]))

    def _sequences(self, tokens: int) -> int:
        return 0 if tokens < self._window else (tokens - self._window) // self._stride + 1

    def _windows(self, shard: int) -> np.ndarray:
        """Return the sequences of a shard as a view of its map, ``(example, position)``."""
        tokens = self._shards[shard].view()
        return np.lib.stride_tricks.sliding_window_view(tokens, self._window)[:: self._stride]

    def _groups_of(self, shard: int, local: np.ndarray) -> np.ndarray:
        if self._documents is None:
            return np.full(len(local), shard, dtype=np.int64)
        places = self._token_starts[shard] + local * self._stride
        found: np.ndarray = np.searchsorted(self._documents[0], places, side="right")
        return found.astype(np.int64) - 1


def _raw_dtype(name: str) -> np.dtype:
    try:
        dtype = np.dtype(_options.text("dtype", name))
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in "iu":
        raise InputError(f"dtype must be a whole-number type such as 'uint16', not {name!r}")
    return dtype.newbyteorder("<")


def _flat(path: Path, dtype: np.dtype | None) -> StoredArray:
    """Return the header of one shard, checked to be flat whole numbers."""
    if path.suffix != ".npy":
        return _raw(path, dtype)
    array = npy_header(path)
    if dtype is not None and array.dtype != dtype:
        raise InputError(
            f"{path} holds {array.dtype.name}, but dtype = {dtype.name!r} was asked for"
        )
    if len(array.shape) != 1 or array.dtype.kind not in "iu":
        raise InputError(
            f"{path} must be a flat array of whole numbers, but is {array.dtype.name} of shape "
            f"{array.shape}; sequences that are cut already are for reader = 'arrays'"
        )
    return array


def _raw(path: Path, dtype: np.dtype | None) -> StoredArray:
    if dtype is None:
        raise InputError(f"{path} is a raw file; say its type, as in dtype = 'uint16'")
    size = _files.file_size(path)
    if size % dtype.itemsize:
        raise InputError(
            f"{path} has {size:,} bytes, which is not a whole number of {dtype.name} tokens of "
            f"{dtype.itemsize} bytes; it is truncated or of another type"
        )
    return StoredArray(path, dtype, (size // dtype.itemsize,))


def _documents(path: Path, n_tokens: int) -> tuple[np.ndarray, list[str]]:
    with readable(path):
        starts, names = _sidecar(path)
    ascending = starts.ndim == 1 and bool((np.diff(starts) >= 0).all())
    if not (ascending and len(starts) == len(names) and len(starts) and starts[0] == 0):
        raise InputError(
            f"{path}: `starts` must ascend from 0 and have one name each, but there are "
            f"{starts.size} starts and {len(names)} names"
        )
    if starts[-1] > n_tokens:
        raise InputError(
            f"{path}: the last document starts at {starts[-1]:,} of {n_tokens:,} tokens"
        )
    return starts, names


def _sidecar(path: Path) -> tuple[np.ndarray, list[str]]:
    if path.suffix == ".npz":
        stored = npz_headers(path)
        starts, names = (stored[name].view() for name in ("starts", "names"))
        return starts.astype(np.int64), names.astype(str).tolist()
    content = read_json(path)
    if not isinstance(content, dict) or not {"starts", "names"} <= content.keys():
        raise InputError(f'{path} must be {{"starts": [...], "names": [...]}}')
    return np.asarray(content["starts"], dtype=np.int64), [str(name) for name in content["names"]]
