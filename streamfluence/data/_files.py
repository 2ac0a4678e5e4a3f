"""The files of a data set: found by pattern, in natural order, known by their bytes.

A digest is of the bytes alone, so a copied or touched file keeps its identity; the
cheap signature (size and time) only says when the digest may be kept.
"""

import glob
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from struct import error as StructError
from zipfile import BadZipFile
from zlib import error as ZlibError

import google_crc32c
import numpy as np

from streamfluence.errors import InputError, StorageError

_BLOCK = 1 << 20
_UNUSABLE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
_MALFORMED = (BadZipFile, EOFError, KeyError, NotImplementedError, StructError, UnicodeError)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what goes wrong while ``path`` is read into an error that names it.

    An OSError without a number is of a library that met bytes it cannot decode.

    Raises:
        InputError: If the file is missing, forbidden, truncated or not of its format.
        StorageError: If the storage failed (a lost mount, a read error); worth a retry.
    """
    try:
        yield
    except _UNUSABLE as error:
        raise InputError(f"{path} cannot be opened: {error.strerror or error}") from error
    except (OSError, *_MALFORMED, ValueError, SyntaxError, ZlibError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise StorageError(f"reading {path} failed: {error.strerror or error}") from error
        raise InputError(
            f"{path} is damaged, truncated or not of the format its name says: {error}"
        ) from error


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that puts ``x-2`` before ``x-10``."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(p), p) if p[0] in "0123456789" else (1, 0, p) for p in parts]


def expand(root: Path, patterns: Sequence[str]) -> list[Path]:
    """Return the files of ``patterns``: patterns in their order, each one's files in natural order.

    Raises:
        InputError: If a pattern matches no file, or a file is named twice.
    """
    paths = [path for pattern in patterns for path in _matches(root, pattern)]
    seen: set[Path] = set()
    for path in paths:
        if path in seen:
            raise InputError(f"{path} is named twice by {list(patterns)}; name every file once")
        seen.add(path)
    return paths


def file_size(path: Path) -> int:
    """Return the bytes of ``path``."""
    with readable(path):
        return path.stat().st_size


def file_digest(path: Path) -> dict[str, str | int]:
    """Return name, bytes and crc32c of a file; reads all of it, 1 MiB at a time."""
    crc, size, buffer = 0, 0, np.empty(_BLOCK, dtype=np.uint8)
    with readable(path), open(path, "rb", buffering=0) as file:
        while got := file.readinto(buffer.data):
            crc = google_crc32c.extend(crc, buffer[:got])
            size += got
    return {"name": path.name, "bytes": size, "crc32c": f"{crc:08x}"}


def file_digests(paths: Sequence[Path]) -> list[dict[str, str | int]]:
    """Return ``file_digest`` of every path, in order; eight files are read at a time."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(file_digest, paths))


def digests_of_shown(paths: Sequence[Path]) -> dict[str, list[dict[str, str | int]]]:
    """Return the part of an identity that is of files which only say how examples are shown."""
    return {"shown": file_digests(paths)} if paths else {}


def file_signatures(paths: Sequence[Path]) -> list[dict[str, str | int]]:
    """Return path, size and times of every path; while equal, digests may be kept.

    The change time is among them: whoever rewrites a file can restore all but that.
    """
    return [_signature(path) for path in paths]


def _matches(root: Path, pattern: str) -> list[Path]:
    if (root / pattern).is_file():
        return [root / pattern]
    found = glob.glob(pattern, root_dir=root, recursive=True)
    files = [name for name in found if (root / name).is_file()]
    if not files:
        raise InputError(f"no file matches {root / pattern}; check `path` in the job")
    return [root / name for name in sorted(files, key=natural_key)]


def _signature(path: Path) -> dict[str, str | int]:
    with readable(path):
        stat = path.stat()
    return {
        "path": str(path),
        "bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
    }
