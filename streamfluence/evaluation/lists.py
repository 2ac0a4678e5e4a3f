"""Lists of training examples as a user gives them: a mask, rows, or ids of their own."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from streamfluence import given
from streamfluence.columns import EXAMPLE_ID
from streamfluence.data._ids import texts
from streamfluence.errors import InputError
from streamfluence.run.columns import columns
from streamfluence.run.opened import OpenRun
from streamfluence.store.text import decode_ids

_SHOWN = 5


def listed_rows(run: OpenRun, path: str, by_id: bool) -> np.ndarray:
    """Return the global rows that a file lists, sorted, int64.

    Args:
        path: ``.npy`` or ``.npz`` (its only array): a bool mask over the training set, or whole
            numbers; ``.json``: a list of whole numbers; ``.txt``: one whole number a line.
        by_id: The entries are the examples' own ids, whole numbers or strings, not rows.

    Raises:
        InputError: If the file is something else, a mask has another length, or a number is no
            row, no id, or there twice.
    """
    values = _read(Path(path), by_id)
    count = run.train.count
    if isinstance(values, np.ndarray) and values.dtype == np.bool_:
        if by_id:
            raise InputError(f"{path} is a mask over rows, which has no ids; leave out --ids")
        if values.shape != (count,):
            raise InputError(
                f"{path} has {values.size:,} flags of shape {values.shape}, but the training set "
                f"has {count:,} examples; give one flag an example"
            )
        return np.flatnonzero(values)
    if by_id:
        return rows_of_ids(run, distinct_ids(values, path), path)[0]
    return np.sort(checked_rows(whole_numbers(values, path), count, path))


def whole_numbers(values: Any, where: str) -> np.ndarray:
    """Return ``values`` as distinct int64, in their order; InputError if they are something else."""
    numbers = _flat(values, where)
    if numbers is None or (numbers.size and numbers.dtype.kind not in "iu"):
        raise InputError(f"{where} must hold a list of whole numbers, got {repr(values)[:60]}")
    return _distinct(numbers.astype(np.int64), where)


def distinct_ids(values: Any, where: str) -> np.ndarray:
    """Return ``values`` as distinct int64 or strings, in their order; InputError if they are neither."""
    ids = _flat(values, where)
    if ids is None or (ids.size and ids.dtype.kind not in "iuU"):
        raise InputError(
            f"{where} must hold a list of ids, whole numbers or strings, got {repr(values)[:60]}"
        )
    return _distinct(ids if ids.size and ids.dtype.kind == "U" else ids.astype(np.int64), where)


def _flat(values: Any, where: str) -> np.ndarray | None:
    """Return a list as an array of one axis, None if it is nothing of the kind."""
    try:
        flat = np.asarray(values)
    except ValueError:  # a list of lists of different lengths
        return None
    if flat.dtype.kind == "U":
        flat = texts(flat, where)
    # A number that fits int64 or its unsigned twin only; numpy makes floats or objects of others.
    whole = flat.dtype.kind != "u" or not flat.size or int(flat.max()) < 1 << 63
    return flat if flat.ndim == 1 and whole else None


def _distinct(values: np.ndarray, where: str) -> np.ndarray:
    distinct, times = np.unique(values, return_counts=True)
    if len(distinct) < len(values):
        raise InputError(f"{where} lists {distinct[times > 1][0]} twice; list an example once")
    return values


def checked_rows(rows: np.ndarray, count: int, where: str) -> np.ndarray:
    """Return ``rows``; InputError if one is not a row of ``count`` examples."""
    outside = rows[(rows < 0) | (rows >= count)]
    if len(outside):
        raise InputError(
            f"{where} names row {outside[0]:,}, but the training set has rows 0 to {count - 1:,}; "
            f"if these are your own ids, give --ids"
        )
    return rows


def rows_of_ids(run: OpenRun, ids: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the examples that have one of these ids, in order, and the id of each.

    Ids are compared as text where either side is text, and returned in the type of ``ids``.

    Raises:
        InputError: If no example has an id; the message lists the first few.
    """
    rows, found = [], []
    for part in columns(run, [EXAMPLE_ID]):
        mine = decode_ids(part.values[EXAMPLE_ID][0])
        mine = mine.astype(str) if ids.dtype.kind == "U" else mine
        hit = np.flatnonzero(np.isin(mine, ids.astype(str) if mine.dtype.kind == "U" else ids))
        rows.append(part.start + hit)
        found.append(mine[hit].astype(ids.dtype.kind if ids.dtype.kind == "U" else np.int64))
    unknown = np.setdiff1d(ids, np.concatenate(found))
    if len(unknown):
        listed = ", ".join(map(str, unknown[:_SHOWN])) + (", ..." if len(unknown) > _SHOWN else "")
        raise InputError(
            f"{where} names {len(unknown):,} ids that no training example has ({listed}); "
            f"ids come from the reader's id_field"
        )
    return np.concatenate(rows), np.concatenate(found)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; InputError if it cannot be read."""
    try:
        return given.read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {_reason(error)}") from error


def _read(path: Path, by_id: bool) -> Any:
    if path.suffix == ".json":
        return read_json(path)
    text = _read_lines if by_id else _read_text
    readers = {".npy": given.read_array, ".npz": _read_npz, ".txt": text}
    if path.suffix not in readers:
        raise InputError(f"{path}: it must end in .npy, .npz, .json or .txt")
    try:
        return readers[path.suffix](path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {_reason(error)}") from error


def _read_npz(path: Path) -> np.ndarray:
    arrays = given.read_arrays(path)
    if len(arrays) != 1:
        raise InputError(f"{path} holds {len(arrays)} arrays ({', '.join(arrays)}); save one")
    return next(iter(arrays.values()))


def _read_text(path: Path) -> np.ndarray:
    lines: Iterable[str] = given.read_text(path).split()
    return np.array([int(line) for line in lines], dtype=np.int64)


def _read_lines(path: Path) -> np.ndarray:
    """Return the lines of a file that are not empty, as text; ids are compared as text then."""
    lines = [line.strip() for line in given.read_text(path).splitlines()]
    return np.array([line for line in lines if line], dtype=str)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
