"""Text as an array of bytes: what every reader of Zarr can open, and no number can be mistaken for.

A string is its UTF-8 bytes in a row of fixed width, filled with zeros. A trailing zero
byte is therefore not kept; numpy drops it from its own strings, too.
"""

from collections.abc import Iterable

import numpy as np


def encode_text(values: Iterable[str]) -> np.ndarray:
    """Return strings as uint8, shape ``(example, width)``; what UTF-8 has no bytes for becomes ``?``."""
    encoded = [str(value).encode("utf-8", "replace") for value in values]
    width = max(1, max(map(len, encoded), default=1))
    joined = b"".join(each.ljust(width, b"\0") for each in encoded)
    return np.frombuffer(joined, np.uint8).reshape(len(encoded), width)


def decode_text(stored: np.ndarray) -> np.ndarray:
    """Return the strings of what ``encode_text`` made, shape ``(example,)``."""
    rows = np.ascontiguousarray(stored, np.uint8)
    texts = [row.tobytes().rstrip(b"\0").decode("utf-8", "replace") for row in rows]
    return np.array(texts, dtype=np.str_) if texts else np.empty(0, np.str_)


def is_text(stored: np.ndarray) -> bool:
    """Return whether a stored column is text rather than one number an example."""
    return stored.ndim == 2 and stored.dtype == np.uint8
