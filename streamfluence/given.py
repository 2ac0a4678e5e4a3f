"""Files that a user gives, read within bounds: what is no file, or has no end, is refused.

A pipe would be waited for, a device read until memory is full, and a list nested a hundred thousand
deep ends the parser; each is told in a sentence instead.
"""

import hashlib
import json
import stat
from pathlib import Path
from typing import Any

import numpy as np

from streamfluence.errors import InputError

MOST_BYTES = 1 << 28  # of text; a list of ten million rows has a third of it


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        InputError: If it is a pipe, a device or a folder, or longer than any list of rows.
        OSError: If it cannot be opened.
        ValueError: If it is no UTF-8.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is not a file; name one")
    if found.st_size > MOST_BYTES:
        raise InputError(
            f"{path} has {found.st_size:,} bytes of text, more than {MOST_BYTES:,}; give numbers as "
            "an array in a .npy file"
        )
    return path.read_text(encoding="utf-8")


def read_json(path: Path) -> Any:
    """Return the value of a JSON file; raises as ``read_text`` does."""
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise InputError(f"{path} is nested too deeply to be a list of anything") from None


def read_array(path: Path) -> np.ndarray:
    """Return the array of a ``.npy`` file, mapped: a header may promise more than memory holds.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is something else, is shorter than its header says, or holds objects.
    """
    found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return found


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a ``.npz`` file, in its order; raises as ``read_array`` does."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def file_sha256(path: Path) -> str | None:
    """Return the digest of a file; None where it cannot be read, which its reader explains."""
    try:
        if not path.is_file():  # a device has no end
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return None
