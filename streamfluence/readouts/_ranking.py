"""Lists of the best examples: one list per query, best first, of fixed length.

Examples are ordered by value and then by row number. That order is total, so the
best of two lists does not depend on how the examples were cut into blocks.
"""

from collections.abc import Mapping

import numpy as np

from streamfluence.errors import InputError
from streamfluence.readouts.base import Arrays

_PADDING = {"rows": -1}  # every other field is a float and is padded with NaN


def checked_length(length: int) -> int:
    """Return ``length`` if a list may have it.

    Raises:
        InputError: If it is not a positive integer.
    """
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise InputError(f"k is the number of examples to list, 1 or more; got {length!r}")
    return length


def first_best(key: np.ndarray, length: int) -> np.ndarray:
    """Return the positions of the ``length`` largest keys of each list, earlier positions first on ties.

    Args:
        key: Shape ``(list, example)``, without NaN.

    Returns:
        int64, shape ``(list, min(length, example))``, in the order of positions.
    """
    count = key.shape[1]
    if length >= count:
        return np.broadcast_to(np.arange(count), key.shape)
    last = np.partition(key, count - length, axis=1)[:, count - length, None]
    above, tied = key > last, key == last
    room = length - above.sum(axis=1)
    crowded = tied.sum(axis=1) > room
    tied[crowded] &= np.cumsum(tied[crowded], axis=1) <= room[crowded, None]
    return np.nonzero(above | tied)[1].reshape(len(key), length)


def pack(member: np.ndarray, fields: Mapping[str, np.ndarray], n_lists: int) -> Arrays:
    """Return candidates, given one after the other, as one padded line per list.

    Args:
        member: The list each candidate is for, shape ``(candidate,)``.
        fields: Name to values, each of shape ``(candidate,)``.

    Returns:
        Name to shape ``(list, longest list)``, padded.
    """
    order = np.argsort(member, kind="stable")
    member = member[order]
    counts = np.bincount(member, minlength=n_lists)
    place = np.arange(len(member)) - (np.cumsum(counts) - counts)[member]
    packed = {}
    for name, values in fields.items():
        packed[name] = np.full((n_lists, counts.max(initial=0)), _padding(name), values.dtype)
        packed[name][member, place] = values[order]
    return packed


def best_of(a: Arrays, b: Arrays, by: str, sign: int, length: int) -> Arrays:
    """Return the ``length`` best of both, best first and padded.

    Args:
        a, b: Field to shape ``(list, any)``. Among equals, those of ``a`` have the smaller rows,
            and within each smaller rows come first.
        by: Field that ranks.
        sign: 1 when the largest is best, -1 when the smallest is.
    """
    both = {name: np.concatenate([a[name], b[name]], axis=1) for name in a}
    # NaN, the padding, comes last; a stable sort leaves equals in the order of rows.
    order = np.argsort(-sign * both[by], axis=1, kind="stable")[:, :length]
    return {name: _widen(name, np.take_along_axis(both[name], order, 1), length) for name in both}


def _widen(name: str, values: np.ndarray, length: int) -> np.ndarray:
    missing = length - values.shape[1]
    if missing == 0:
        return values
    return np.pad(values, ((0, 0), (0, missing)), constant_values=_padding(name))


def _padding(name: str) -> float:
    return _PADDING.get(name, np.nan)
