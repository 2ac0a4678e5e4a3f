"""Read subsets of the examples: a boolean mask, or lists of row numbers.

Either way one block of rows at a time becomes a small dense membership matrix;
a mask on disk is mapped, never loaded.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from streamfluence.errors import InputError
from streamfluence.given import read_array, read_arrays, read_json


class Subsets(Protocol):
    """Subsets of the examples, in order."""

    def __len__(self) -> int: ...

    def membership(self, start: int, stop: int) -> np.ndarray:
        """Return whether each example of ``[start, stop)`` is in each subset, ``(subset, example)``."""
        ...

    def check(self, n_examples: int) -> None:
        """Raise InputError unless these are subsets of ``n_examples`` examples."""
        ...


class MaskSubsets:
    """Subsets given as a boolean array, shape ``(subset, example)``."""

    def __init__(self, mask: np.ndarray) -> None:
        if mask.ndim != 2 or mask.dtype != np.bool_:
            raise InputError(
                f"a subset mask is a boolean array of shape (subset, example); this one is {mask.dtype} "
                f"of shape {mask.shape}; convert it, e.g. with .astype(bool)"
            )
        self._mask = mask

    def __len__(self) -> int:
        return len(self._mask)

    def membership(self, start: int, stop: int) -> np.ndarray:
        if stop > self._mask.shape[1]:
            self.check(stop)
        return self._mask[:, start:stop]

    def check(self, n_examples: int) -> None:
        if self._mask.shape[1] != n_examples:
            raise InputError(
                f"the subset mask has {self._mask.shape[1]:,} columns, but the training set has "
                f"{n_examples:,} examples or more; give one column to each example"
            )


class ListedSubsets:
    """Subsets given as lists of global row numbers."""

    def __init__(self, lists: Sequence[Any]) -> None:
        rows = [_checked_rows(index, rows) for index, rows in enumerate(lists)]
        lengths = [len(listed) for listed in rows]
        subset = np.repeat(np.arange(len(rows)), lengths)
        joined = np.concatenate(rows) if rows else np.empty(0, np.int64)
        order = np.argsort(joined, kind="stable")
        self._n_subsets, self._rows, self._subset = len(rows), joined[order], subset[order]

    def __len__(self) -> int:
        return self._n_subsets

    def membership(self, start: int, stop: int) -> np.ndarray:
        low, high = np.searchsorted(self._rows, (start, stop))
        inside = np.zeros((self._n_subsets, stop - start), bool)
        inside[self._subset[low:high], self._rows[low:high] - start] = True
        return inside

    def check(self, n_examples: int) -> None:
        if len(self._rows) and self._rows[-1] >= n_examples:
            raise InputError(
                f"a subset names row {self._rows[-1]:,}, but the training set has {n_examples:,} "
                "examples, numbered from 0"
            )


def open_subsets(source: Any) -> Subsets:
    """Return the subsets of a file or of arrays.

    Args:
        source: Path of a ``.npy`` boolean mask ``(subset, example)``, of a ``.npz`` with one array
            of rows per subset, or of a ``.json`` list of lists, or object of lists; or such a
            mask or such lists themselves.

    Raises:
        InputError: If there is no such file, or it holds something else.
    """
    if isinstance(source, str | Path):
        source = _read(Path(source))
    if isinstance(source, Mapping):
        source = list(source.values())
    if isinstance(source, np.ndarray):
        return MaskSubsets(source)
    if not isinstance(source, list | tuple):
        raise InputError(
            f"subsets are a path, a boolean mask or lists of rows, not {type(source).__name__}"
        )
    return ListedSubsets(source)


def _read(path: Path) -> Any:
    readers = {".npy": read_array, ".npz": read_arrays, ".json": read_json}
    if path.suffix not in readers:
        raise InputError(f"subsets = {str(path)!r}: it must end in {', '.join(readers)}")
    try:
        return readers[path.suffix](path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read subsets from {str(path)!r}: {error}") from error


def _checked_rows(index: int, listed: Any) -> np.ndarray:
    try:
        rows = np.asarray(listed)
    except ValueError:  # lists of different lengths inside the list
        rows = np.empty((), object)
    if rows.ndim != 1 or (rows.dtype.kind not in "iu" and rows.size):
        raise InputError(f"subset {index} must be a list of row numbers, got {repr(listed)[:60]}")
    rows = np.sort(rows.astype(np.int64))
    if len(rows) and rows[0] < 0:
        raise InputError(f"subset {index} names row {rows[0]}; rows are numbered from 0")
    twice = rows[1:][rows[1:] == rows[:-1]]
    if len(twice):
        raise InputError(
            f"subset {index} names row {twice[0]} twice; a subset holds an example once"
        )
    return rows
