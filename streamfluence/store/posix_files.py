"""Single files and folders of a POSIX file system, each taken for what ``lstat`` says it is.

Nothing here follows a symbolic link, and nothing but a plain file is opened:
opening a pipe waits for ever, and opening a device may do anything.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from streamfluence.errors import DamageError

_FOLDER_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


def link_exclusively(temporary: Path, target: Path) -> bool:
    """Give a file its final name; False if something has that name already."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if os.stat(temporary).st_nlink == 2:
            return True
        if isinstance(error, FileExistsError):
            return False
        raise
    return True


def write_file(path: Path, data: Any, flush: bool) -> None:
    """Write a new file; what has its name is taken away first, never written through."""
    view, done = memoryview(data).cast("B"), 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        file = os.open(path, flags, 0o666)
    except FileExistsError:
        os.unlink(path)
        file = os.open(path, flags, 0o666)
    try:
        while done < len(view):
            done += os.write(file, view[done:])
        if flush:
            os.fsync(file)
    finally:
        os.close(file)


def open_file(path: Path) -> int:
    """Open a plain file for reading; looked at first, because opening a pipe or a device acts on it."""
    check_file(path)
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(file).st_mode
    if not stat.S_ISREG(mode):
        os.close(file)
        refuse(path, mode, "a file")
    return file


def check_file(path: Path) -> None:
    """Raise ``DamageError`` for what is there and no plain file, ``FileNotFoundError`` for nothing."""
    try:
        mode = path.lstat().st_mode
    except NotADirectoryError as error:  # a file has the name of a folder on the way
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
    if not stat.S_ISREG(mode):
        refuse(path, mode, "a file")


def refuse(path: Path, mode: int, wanted: str) -> NoReturn:
    """Raise ``DamageError`` for something that lies where a run has ``wanted``."""
    raise DamageError(
        f"{path} is {kind(path, mode)}, where a run has {wanted} of its own; nothing in a run is read, "
        "written or removed through it: take it away, and put back what was there"
    )


def kind(path: Path, mode: int) -> str:
    """Return what lies at a path, in words; of a link also where it leads."""
    if stat.S_ISLNK(mode):
        with suppress(OSError):
            return f"a symbolic link to {os.readlink(path)}"
        return "a symbolic link"
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "no file")


def remove_tree(top: Path) -> None:
    """Remove what is at ``top``: a folder with all below it, anything else as the one thing it is."""
    if not stat.S_ISDIR(top.lstat().st_mode):
        top.unlink()
        return
    try:
        shutil.rmtree(top)  # enters no link, and refuses one that takes a folder's place meanwhile
    except RecursionError:
        raise DamageError(f"{top} holds folders nested too deeply for a run; remove it") from None


def sync_file(path: Path) -> None:
    """Make the content of a file durable."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in _FOLDER_CANNOT_SYNC:
            raise
    finally:
        os.close(folder)


def folders_below(top: Path, files: Iterable[Path]) -> list[Path]:
    """Return ``top`` and every folder between it and the files, the deepest first."""
    found = {top}
    for file in files:
        found.update(folder for folder in file.parents if folder.is_relative_to(top))
    return sorted(found, key=lambda folder: -len(folder.parts))
