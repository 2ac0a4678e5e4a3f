"""Strings as arrays of numbers: UTF-8 bytes, one row an example, filled up with zeros.

Stored arrays hold numbers only, so that any Zarr reader opens them. A row of text is told from
a number by its shape: ``(example, width)`` uint8 against ``(example,)`` int64.
"""

import numpy as np

from streamfluence.errors import DamageError

TEXT = "utf-8"  # what a group's attributes call an array of text
_STEP = 8  # widths are multiples of it, so that those of most partitions agree


def encode_text(strings: np.ndarray) -> np.ndarray:
    """Return strings as uint8 ``(example, width)``; like numpy, it drops zeros at a string's end.

    Args:
        strings: Shape ``(example,)``, of numpy's kind ``U``.
    """
    encoded = np.char.encode(strings, "utf-8", "surrogatepass")
    width = -(-max(encoded.dtype.itemsize, 1) // _STEP) * _STEP
    padded = np.ascontiguousarray(encoded, dtype=f"S{width}")
    return padded.view(np.uint8).reshape(len(strings), width)


def decode_text(stored: np.ndarray) -> np.ndarray:
    """Return what `encode_text` made, as strings of numpy's kind ``U``, shape ``(example,)``.

    Raises:
        DamageError: If the bytes are no UTF-8.
    """
    rows, width = stored.shape
    if not rows or not width:
        return np.full(rows, "", dtype="U1")
    flat = np.ascontiguousarray(stored).view(f"S{width}").reshape(rows)
    try:
        return np.char.decode(flat, "utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise DamageError(f"a stored string is no UTF-8: {error}") from error


def encode_ids(ids: np.ndarray) -> np.ndarray:
    """Return ids as they are stored: int64 ``(example,)``, or strings as uint8 ``(example, width)``."""
    return encode_text(ids) if ids.dtype.kind == "U" else ids.astype(np.int64, copy=False)


def decode_ids(stored: np.ndarray) -> np.ndarray:
    """Return stored ids as int64 or, where they are text, as strings of kind ``U``, ``(example,)``."""
    return decode_text(stored) if stored.ndim == 2 and stored.dtype == np.uint8 else stored
