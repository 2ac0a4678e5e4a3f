"""Ids and groups as readers return them: int64, or strings of numpy's kind ``U``."""

import numpy as np

from streamfluence.errors import InputError


def whole(values: np.ndarray, where: str) -> np.ndarray:
    """Return whole numbers as int64; InputError where one does not fit, since it would wrap round."""
    if values.dtype.kind == "u" and values.size and int(values.max()) >= 1 << 63:
        raise InputError(
            f"{where} holds {int(values.max())}, which is no int64; store such ids as strings"
        )
    return values.astype(np.int64)


def texts(values: np.ndarray, where: str) -> np.ndarray:
    """Return strings, or bytes that are UTF-8, as strings of kind ``U``; InputError for other bytes."""
    if values.dtype.kind == "U":
        return values
    try:
        return np.char.decode(values, "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} holds bytes that are no UTF-8 text: {error}") from error
