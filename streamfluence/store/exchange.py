"""Put a folder in the place of another one without an instant in which neither is there."""

import ctypes
import errno
import os
from contextlib import suppress
from pathlib import Path

_HERE = -100  # AT_FDCWD: paths are taken as they are
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def put_in_place(new: Path, final: Path, aside: Path) -> Path | None:
    """Give ``new`` the name ``final``; return where what was there lies now, None if nothing was.

    Args:
        aside: Name for it where two folders cannot be swapped in one step. It is then gone for an
            instant, and comes back if the second step fails.
    """
    if not os.path.lexists(final):
        os.rename(new, final)
        return None
    if _exchange(new, final):
        return new
    os.rename(final, aside)
    try:
        os.rename(new, final)
    except OSError:
        with suppress(OSError):
            os.rename(aside, final)
        raise
    return aside


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names of one file system; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    error = ctypes.get_errno()
    if error in _CANNOT:
        return False
    raise OSError(error, os.strerror(error), str(other))
