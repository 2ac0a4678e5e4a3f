"""Ids and groups as readers return them: int64, or strings of numpy's kind ``U``."""

import numpy as np

from streamfluence.errors import InputError

_LAST = 0x10FFFF


def whole(values: np.ndarray, where: str) -> np.ndarray:
    """Return whole numbers as int64; InputError where one does not fit, since it would wrap round."""
    if values.dtype.kind == "u" and values.size and int(values.max()) >= 1 << 63:
        raise InputError(
            f"{where} holds {int(values.max())}, which is no int64; store such ids as strings"
        )
    return values.astype(np.int64)


def codes(values: np.ndarray) -> np.ndarray:
    """Return the numbers of all characters of strings of kind ``U``, which numpy does not check."""
    native = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    return np.frombuffer(native.tobytes(), np.uint32)


def shown(values: np.ndarray) -> np.ndarray:
    """Return strings of kind ``U`` with a sign in the place of what is no character."""
    numbers = codes(values)
    safe = np.where(numbers > _LAST, ord("\N{REPLACEMENT CHARACTER}"), numbers).astype(np.uint32)
    return safe.view(values.dtype.newbyteorder("=")).reshape(values.shape) if safe.size else values


def texts(values: np.ndarray, where: str) -> np.ndarray:
    """Return strings, or bytes that are UTF-8, as strings of kind ``U``.

    Raises:
        InputError: If they are no text: other bytes, or numbers that are no character of Unicode.
    """
    if values.dtype.kind == "U":
        last = int(codes(values).max(initial=0))
        if last > _LAST:
            raise InputError(
                f"{where} holds strings with the character number {last:#x}, but Unicode ends at "
                f"{_LAST:#x}; its bytes are no text, so save it again"
            )
        return values
    try:
        return np.char.decode(values, "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} holds bytes that are no UTF-8 text: {error}") from error
