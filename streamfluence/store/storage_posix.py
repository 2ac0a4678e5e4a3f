"""A run in a local or shared POSIX file system.

A document appears with its whole content or not at all: it is written under a
temporary name, flushed, and hard-linked to its final name, which fails if that
name exists. On NFS a link may succeed and still report an error, so the link
count decides who won.

The run's folder itself may be reached through symbolic links; below it none is
followed, neither to read nor to remove, and nothing but a plain file is opened.
"""

import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from streamfluence.errors import DamageError
from streamfluence.store.exchange import put_in_place
from streamfluence.store.posix_files import (
    check_file,
    folders_below,
    kind,
    link_exclusively,
    open_file,
    refuse,
    remove_tree,
    sync_file,
    sync_folder,
    write_file,
)
from streamfluence.store.storage import (
    DOCUMENT_BYTES,
    PARTIAL,
    Entry,
    ObjectReader,
    Storage,
    checked_path,
    operating_system_errors,
)
from streamfluence.store.unique import unique_name

_DEEPEST = 16
_T = TypeVar("_T")


class PosixStorage(Storage):
    """Files below one folder.

    Args:
        root: The run's folder; made when the first object is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self.url = str(self.root)

    def read(self, path: str, limit: int | None = None) -> bytes:
        target = self._resolve(path)
        with operating_system_errors("read", target):
            file = open_file(target)
            with open(file, "rb", buffering=0) as stream:
                if limit is None or os.fstat(file).st_size <= limit:
                    return stream.readall()
                return stream.read(limit + 1)

    def read_many(
        self, paths: Iterable[str], limit: int = DOCUMENT_BYTES
    ) -> list[bytes | DamageError | None]:
        return [self._read_if_there(path, limit) for path in paths]

    def open(self, path: str) -> ObjectReader:
        return _FileReader(self._resolve(path))

    def write(self, path: str, data: Any) -> None:
        target = self._resolve(path)
        with operating_system_errors("write", target, missing=False):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_file(target, data, flush=False)

    def create(self, path: str, data: bytes) -> bool:
        if self.exists(path):
            return False  # without a temporary file: a repeated run touches nothing
        return self._put(path, data, link_exclusively)

    def replace(self, path: str, data: bytes) -> None:
        self._put(path, data, os.replace)

    def _put(self, path: str, data: bytes, name: Callable[[Path, Path], _T]) -> _T:
        """Write a file under a name of its own, then have ``name`` give it the one it is to have."""
        target = self._resolve(path)
        temporary = target.with_name(f".{target.name}.{unique_name()}{PARTIAL}")
        with operating_system_errors("write", target, missing=False):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                write_file(temporary, data, flush=True)
                done = name(temporary, target)
            finally:
                with suppress(OSError):
                    os.unlink(temporary)
            self._sync_upward(target.parent)
        return done

    def sync(self, prefix: str, names: Iterable[str]) -> None:
        top = self._resolve(prefix)
        files = [top / checked_path(name) for name in names]
        with operating_system_errors("flush", top, missing=False):
            for file in files:
                sync_file(file)
            for folder in folders_below(top, files):
                sync_folder(folder)
            self._sync_upward(top.parent)

    def exists(self, path: str) -> bool:
        target = self._resolve(path)
        with operating_system_errors("look for", target):
            try:
                target.lstat()
            except (FileNotFoundError, NotADirectoryError):
                return False
        return True

    def entries(self, prefix: str) -> Iterator[Entry]:
        for path in self._walk(prefix):
            with suppress(FileNotFoundError):
                found = path.lstat()
                if stat.S_ISREG(found.st_mode):
                    relative = path.relative_to(self.root).as_posix()
                    yield Entry(relative, found.st_size, found.st_mtime)

    def strange(self, prefix: str) -> Iterator[tuple[str, str]]:
        for path in self._walk(prefix):
            with suppress(FileNotFoundError):
                found = path.lstat()
                if not stat.S_ISREG(found.st_mode):
                    yield path.relative_to(self.root).as_posix(), kind(path, found.st_mode)

    def children(self, prefix: str) -> tuple[list[str], list[str]]:
        top = self._folder(prefix)
        folders: list[str] = []
        others: list[str] = []
        with (
            operating_system_errors("list", top),
            suppress(FileNotFoundError),
            os.scandir(top) as found,
        ):
            for item in found:
                (folders if item.is_dir(follow_symlinks=False) else others).append(item.name)
        return sorted(folders), sorted(others)

    def remove(self, path: str) -> None:
        target = self._resolve(path)
        with operating_system_errors("remove", target), suppress(FileNotFoundError):
            target.unlink()

    def remove_tree(self, prefix: str) -> None:
        top = self._resolve(prefix)
        with operating_system_errors("remove", top), suppress(FileNotFoundError):
            remove_tree(top)

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
            check_file(old)
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
        """Swap two names in one step where the system can; what was there goes last."""
        new, final = self._resolve(staged), self._resolve(target)
        aside = final.with_name(f"{final.name}.{unique_name()}{PARTIAL}")
        with operating_system_errors("replace", final):
            old = put_in_place(new, final, aside)
            self._sync_upward(final.parent)
            if old is not None:
                with suppress(OSError):
                    remove_tree(old)

    def local_path(self, path: str) -> Path | None:
        return self._resolve(path)

    def _resolve(self, path: str) -> Path:
        """Return the place of ``path``, after a look that no link is on the way; itself it may be one."""
        *folders, _ = checked_path(path).split("/")
        place = str(self.root)
        for folder in folders:
            place = f"{place}/{folder}"
            with operating_system_errors("look for", place):
                try:
                    mode = os.lstat(place).st_mode
                except (FileNotFoundError, NotADirectoryError):
                    break
            if not stat.S_ISDIR(mode):
                refuse(Path(place), mode, "a folder")
        return self.root / path

    def _folder(self, prefix: str) -> Path:
        """Return the place of a folder; one that is not there is as good as empty."""
        if not prefix:
            return self.root
        top = self._resolve(prefix)
        with operating_system_errors("look for", top), suppress(FileNotFoundError):
            mode = top.lstat().st_mode
            if not stat.S_ISDIR(mode):
                refuse(top, mode, "a folder")
        return top

    def _walk(self, prefix: str) -> Iterator[Path]:
        """Yield all below a folder but folders; links are not entered, and come like files."""
        waiting = [(self._folder(prefix), 0)]
        while waiting:
            folder, depth = waiting.pop()
            with operating_system_errors("list", folder), suppress(FileNotFoundError):
                with os.scandir(folder) as listed:
                    found = sorted(listed, key=lambda item: item.name)
                below = [item for item in found if item.is_dir(follow_symlinks=False)]
                if depth < _DEEPEST:  # nothing of a run lies deeper
                    waiting += [(Path(item.path), depth + 1) for item in reversed(below)]
                yield from (Path(item.path) for item in found if item not in below)

    def _read_if_there(self, path: str, limit: int) -> bytes | DamageError | None:
        try:
            return self.read(path, limit)
        except FileNotFoundError:
            return None
        except DamageError as error:
            return error

    def _sync_upward(self, folder: Path) -> None:
        """Flush a folder and those above it, up to the one that holds the root."""
        while folder.is_relative_to(self.root):
            sync_folder(folder)
            folder = folder.parent
        with suppress(PermissionError):
            sync_folder(folder)


class _FileReader(ObjectReader):
    def __init__(self, path: Path) -> None:
        self._path = path
        with operating_system_errors("open", path):
            self._file = open_file(path)
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
