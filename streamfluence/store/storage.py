"""What a run needs of the place it lies in, and how that place's failures are told.

Two promises carry the commit protocol: ``create`` makes a document exclusively
*with* its content, and whatever ``sync`` was called for survives a power cut.
Everything else is plain reading, writing and listing below one root.
"""

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamfluence.errors import DamageError, InputError, StorageError

PARTIAL = ".partial"
DOCUMENT_BYTES = 16 << 20  # no document of a run is larger: 100,000 files' digests are 10 MiB

_NAME_BYTES = 255  # of one part of a path, in every file system in use

_ADVICE = {
    errno.ENOSPC: "the disk is full: free space there, then run the same command again",
    errno.EDQUOT: "the quota is used up: free space or files there, then run the same command again",
    errno.EFBIG: "the file exceeds the size limit: raise it (ulimit -f), or make partitions smaller",
    errno.EROFS: "the file system is mounted read-only: remount it, or choose another place",
    errno.EACCES: "permission denied: check the owner and mode of the run's folders",
    errno.EPERM: "not permitted: check the owner and mode, and that the file system has hard links",
    errno.ENOTSUP: "not supported: a run needs a file system with hard links",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n)",
    errno.ESTALE: "the mount was lost: remount it, then run the same command again",
    errno.ENOENT: "it vanished while it was written: check the mount, then run the same command again",
    errno.EIO: "the device or mount reports an error: check it, then run the same command again",
}


@dataclass(frozen=True)
class Entry:
    """One stored object: its path in the run, bytes, and time of writing (seconds since 1970)."""

    path: str
    size: int
    modified: float


class ObjectReader(ABC):
    """An open object; ``size`` is its length in bytes."""

    size: int

    @abstractmethod
    def read_into(self, offset: int, target: Any) -> int:
        """Fill a writable buffer from ``offset``; return the bytes read, fewer only at the end."""

    def close(self) -> None:  # noqa: B027 - nothing to release is a fine answer
        """Release what is held open."""


class Storage(ABC):
    """Base of both kinds of storage. Paths are relative to the root and use ``/``.

    Every failure of the place itself is a ``StorageError`` with the path and what to
    do. Reading what is not there is ``FileNotFoundError``, for the caller to judge.
    What is there but is no plain file or folder (a link, a pipe, a device) is never
    followed or opened: it is a ``DamageError``, and only removing or moving touch it,
    as the thing it is.

    Attributes:
        url: The root, as an error message names it.
    """

    url: str

    @abstractmethod
    def read(self, path: str, limit: int | None = None) -> bytes:
        """Return a whole object, or of one larger than ``limit`` only ``limit + 1`` bytes."""

    @abstractmethod
    def read_many(
        self, paths: Iterable[str], limit: int = DOCUMENT_BYTES
    ) -> list[bytes | DamageError | None]:
        """Return many small objects in order, None for one that is gone, or why it cannot be read."""

    @abstractmethod
    def open(self, path: str) -> ObjectReader:
        """Open an object for reading in pieces."""

    @abstractmethod
    def write(self, path: str, data: Any) -> None:
        """Write an object that nobody else writes; durable only after ``sync``."""

    def replace(self, path: str, data: bytes) -> None:
        """Put an object with its content, durably, in the place of the one that is there, in one step."""
        self.write(path, data)

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Create an object with its content, durably; False if another one is already there."""

    @abstractmethod
    def sync(self, prefix: str, names: Iterable[str]) -> None:
        """Make the objects ``names`` below ``prefix`` durable, then the folders up to the root."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Return whether an object is there."""

    @abstractmethod
    def entries(self, prefix: str) -> Iterator[Entry]:
        """Yield every object below a folder; nothing if the folder is not there."""

    @abstractmethod
    def strange(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield path and kind of all below a folder that is neither a plain file nor a folder."""

    @abstractmethod
    def children(self, prefix: str) -> tuple[list[str], list[str]]:
        """Return the sorted names of the folders, and of all else, directly in a folder."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove one object, a link as a link; silent if it is not there."""

    @abstractmethod
    def remove_tree(self, prefix: str) -> None:
        """Remove a folder and everything below, through no link; silent if it is not there."""

    @abstractmethod
    def move(self, source: str, target: str) -> None:
        """Move one object, a link as a link, durably."""

    @abstractmethod
    def link(self, source: str, target: str) -> None:
        """Make ``target`` the same immutable object as ``source`` without reading it."""

    @abstractmethod
    def stage_tree(self, target: str) -> str:
        """Return the folder in which to build what ``publish_tree`` will put at ``target``."""

    @abstractmethod
    def publish_tree(self, staged: str, target: str) -> None:
        """Put a staged tree in the place of ``target``."""

    @abstractmethod
    def local_path(self, path: str) -> Path | None:
        """Return the path in the local file system, None where there is none."""


def checked_path(path: str) -> str:
    """Return ``path`` if it stays below the root.

    Raises:
        InputError: If it is absolute, empty, climbs with ``..``, or is no name of a file.
    """
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in path or "\0" in path:
        raise InputError(
            f"path {path!r} leaves the run; it must be relative, without '..' or empty parts"
        )
    try:
        too_long = max(len(os.fsencode(part)) for part in parts) > _NAME_BYTES
    except UnicodeEncodeError:
        too_long = True
    if too_long:
        raise InputError(f"path {path[:100]!r} cannot be the name of a file of a run")
    return path


@contextmanager
def operating_system_errors(action: str, path: Any, missing: bool = True) -> Iterator[None]:
    """Turn an ``OSError`` into a ``StorageError`` that says what failed where and what to do.

    Args:
        missing: Whether ``FileNotFoundError`` passes through, for the caller to judge. While
            writing it does not: a folder that vanishes under a writer is a failed storage.

    Raises:
        InputError: If the path cannot be: no storage would take it later.
        StorageError: Of every other failure.
    """
    try:
        yield
    except OSError as error:
        if missing and isinstance(error, FileNotFoundError):
            raise
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(f"{path}: a name in it is too long for its file system") from error
        advice = _ADVICE.get(error.errno or 0, "check the storage, then run the same command again")
        raise StorageError(
            f"cannot {action} {path}: {error.strerror or error}; {advice}"
        ) from error
