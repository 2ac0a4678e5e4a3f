"""A run in a local or shared POSIX file system.

A document appears with its whole content or not at all: it is written under a
temporary name, flushed, and hard-linked to its final name, which fails if that
name exists. On NFS a link may succeed and still report an error, so the link
count decides who won.
"""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from streamfluence.errors import InputError
from streamfluence.store.storage import (
    PARTIAL,
    Entry,
    ObjectReader,
    Storage,
    checked_path,
    operating_system_errors,
)
from streamfluence.store.unique import unique_name

_FOLDER_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


class PosixStorage(Storage):
    """Files below one folder.

    Args:
        root: The run's folder; made when the first object is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self.url = str(self.root)

    def read(self, path: str) -> bytes:
        target = self._resolve(path)
        with operating_system_errors("read", target):
            return target.read_bytes()

    def read_many(self, paths: Iterable[str]) -> list[bytes | None]:
        return [self._read_if_there(path) for path in paths]

    def open(self, path: str) -> ObjectReader:
        return _FileReader(self._resolve(path))

    def write(self, path: str, data: Any) -> None:
        target = self._resolve(path)
        with operating_system_errors("write", target, missing=False):
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_file(target, data, flush=False)

    def create(self, path: str, data: bytes) -> bool:
        target = self._resolve(path)
        if self.exists(path):
            return False  # without a temporary file: a repeated run touches nothing
        temporary = target.with_name(f".{target.name}.{unique_name()}{PARTIAL}")
        with operating_system_errors("write", target, missing=False):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                _write_file(temporary, data, flush=True)
                won = _link_exclusively(temporary, target)
            finally:
                with suppress(OSError):
                    os.unlink(temporary)
            self._sync_upward(target.parent)
        return won

    def sync(self, prefix: str, names: Iterable[str]) -> None:
        top = self._resolve(prefix)
        files = [top / checked_path(name) for name in names]
        with operating_system_errors("flush", top, missing=False):
            for file in files:
                _sync_file(file)
            for folder in _folders_below(top, files):
                _sync_folder(folder)
            self._sync_upward(top.parent)

    def exists(self, path: str) -> bool:
        target = self._resolve(path)
        with operating_system_errors("look for", target):
            try:
                target.stat()
            except (FileNotFoundError, NotADirectoryError):
                return False
        return True

    def entries(self, prefix: str) -> Iterator[Entry]:
        top = self._resolve(prefix)
        with operating_system_errors("list", top):
            for folder, _, files in os.walk(top, onerror=_raise_unless_missing):
                for name in sorted(files):
                    with suppress(FileNotFoundError):
                        yield self._entry(Path(folder, name))

    def children(self, prefix: str) -> tuple[list[str], list[str]]:
        top = self._resolve(prefix) if prefix else self.root
        folders: list[str] = []
        files: list[str] = []
        with (
            operating_system_errors("list", top),
            suppress(FileNotFoundError),
            os.scandir(top) as found,
        ):
            for item in found:
                (folders if item.is_dir() else files).append(item.name)
        return sorted(folders), sorted(files)

    def remove(self, path: str) -> None:
        target = self._resolve(path)
        with operating_system_errors("remove", target), suppress(FileNotFoundError):
            target.unlink()

    def remove_tree(self, prefix: str) -> None:
        top = self._resolve(prefix)
        with operating_system_errors("remove", top), suppress(FileNotFoundError):
            shutil.rmtree(top)

    def move(self, source: str, target: str) -> None:
        old, new = self._resolve(source), self._resolve(target)
        with operating_system_errors("move", old):
            new.parent.mkdir(parents=True, exist_ok=True)
            os.rename(old, new)
            self._sync_upward(new.parent)
            self._sync_upward(old.parent)

    def link(self, source: str, target: str) -> None:
        old, new = self._resolve(source), self._resolve(target)
        with operating_system_errors("link", new):
            new.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(old, new)
            except FileNotFoundError:
                raise
            except OSError:  # too many links, or another file system behind a mount
                shutil.copyfile(old, new)

    def stage_tree(self, target: str) -> str:
        return f"{target}.{unique_name()}{PARTIAL}"

    def publish_tree(self, staged: str, target: str) -> None:
        """Swap two names; for an instant between two renames ``target`` is not there."""
        new, final = self._resolve(staged), self._resolve(target)
        old = final.with_name(f"{final.name}.{unique_name()}{PARTIAL}")
        with operating_system_errors("replace", final):
            with suppress(FileNotFoundError):
                os.rename(final, old)
            os.rename(new, final)
            self._sync_upward(final.parent)
            shutil.rmtree(old, ignore_errors=True)

    def local_path(self, path: str) -> Path | None:
        return self._resolve(path)

    def _resolve(self, path: str) -> Path:
        """Return the file behind ``path``; a symbolic link must not lead out of the run."""
        target = Path(os.path.realpath(self.root / checked_path(path)))
        if not target.is_relative_to(self.root):
            raise InputError(
                f"{self.root / path} is a link to {target}, outside the run {self.root}; "
                "move the whole run there instead of linking a part of it"
            )
        return target

    def _read_if_there(self, path: str) -> bytes | None:
        try:
            return self.read(path)
        except FileNotFoundError:
            return None

    def _entry(self, path: Path) -> Entry:
        found = path.stat()
        return Entry(path.relative_to(self.root).as_posix(), found.st_size, found.st_mtime)

    def _sync_upward(self, folder: Path) -> None:
        """Flush a folder and those above it, up to the one that holds the root."""
        while folder.is_relative_to(self.root):
            _sync_folder(folder)
            folder = folder.parent
        with suppress(PermissionError):
            _sync_folder(folder)


class _FileReader(ObjectReader):
    def __init__(self, path: Path) -> None:
        self._path = path
        with operating_system_errors("open", path):
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.size = os.fstat(self._file).st_size

    def read_into(self, offset: int, target: Any) -> int:
        view, done = memoryview(target).cast("B"), 0
        with operating_system_errors("read", self._path):
            while done < len(view):
                got = os.preadv(self._file, [view[done:]], offset + done)
                if not got:
                    break
                done += got
        return done

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _link_exclusively(temporary: Path, target: Path) -> bool:
    try:
        os.link(temporary, target)
    except OSError as error:
        if os.stat(temporary).st_nlink == 2:
            return True
        if isinstance(error, FileExistsError):
            return False
        raise
    return True


def _write_file(path: Path, data: Any, flush: bool) -> None:
    view, done = memoryview(data).cast("B"), 0
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        while done < len(view):
            done += os.write(file, view[done:])
        if flush:
            os.fsync(file)
    finally:
        os.close(file)


def _sync_file(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in _FOLDER_CANNOT_SYNC:
            raise
    finally:
        os.close(folder)


def _folders_below(top: Path, files: Iterable[Path]) -> list[Path]:
    """Return ``top`` and every folder between it and the files, the deepest first."""
    found = {top}
    for file in files:
        found.update(folder for folder in file.parents if folder.is_relative_to(top))
    return sorted(found, key=lambda folder: -len(folder.parts))


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
