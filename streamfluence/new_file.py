"""Write a file of the user's that was not there: whole or not at all, and over nothing."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from streamfluence.errors import InputError, StorageError

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a new temporary file of the same folder to write to; it becomes ``path`` at the end.

    Its name is nobody else's, and a file that appears at ``path`` meanwhile stays as it is. What
    was written survives a power cut.

    Raises:
        InputError: If there is something at ``path``, or no folder for it.
        StorageError: If it cannot be written.
    """
    if os.path.lexists(path):
        raise _exists(path)
    folder = path.absolute().parent
    if not os.path.isdir(folder):
        raise InputError(f"the folder of {path} does not exist; make it, or name another file")
    try:
        with suppress(FileNotFoundError):
            path.lstat()  # refuses a name before anything is written
        handle, name = tempfile.mkstemp(prefix=".", suffix=".partial", dir=folder)
        os.close(handle)
    except OSError as error:
        raise failed(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        _publish(temporary, path, folder)
    except OSError as error:
        raise failed(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _publish(temporary: Path, path: Path, folder: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)  # as any program would have made it
    _flush(temporary, os.O_RDONLY)
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _copy_exclusively(temporary, path)
    with suppress(OSError):  # some file systems cannot flush a folder
        _flush(folder, os.O_RDONLY | os.O_DIRECTORY)


def _copy_exclusively(temporary: Path, path: Path) -> None:
    """Put the content at ``path`` where there are no hard links."""
    try:
        with path.open("xb") as target:
            target.write(temporary.read_bytes())
            target.flush()
            os.fsync(target.fileno())
    except FileExistsError as error:
        raise _exists(path) from error


def _flush(path: Path, flags: int) -> None:
    handle = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exists(path: Path) -> InputError:
    return InputError(f"{path} exists already; remove it or name another file")


def failed(path: Path, error: OSError) -> InputError | StorageError:
    """Return what it means that a file or folder of the user's could not be made."""
    if error.errno == errno.ENAMETOOLONG:
        return InputError(f"{path}: the name is too long for this file system; give a shorter one")
    return StorageError(f"cannot write {path}: {error.strerror or error}")
