"""Copies of a run: complete ones that keep hard links, and quick returns to the original."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def files_of(root: Path) -> list[str]:
    """Return the paths of all files below ``root``, relative and sorted; links are not followed."""
    found = [
        os.path.relpath(os.path.join(folder, name), root)
        for folder, _, names in os.walk(root)
        for name in names
    ]
    return sorted(found)


def folders_of(root: Path) -> list[str]:
    """Return the paths of all folders below ``root``, relative and sorted."""
    found = [
        os.path.relpath(os.path.join(folder, name), root)
        for folder, names, _ in os.walk(root)
        for name in names
    ]
    return sorted(found)


def copy(source: Path, target: Path) -> None:
    """Make ``target`` a copy of ``source`` in which what shared an inode shares one."""
    shutil.rmtree(target, ignore_errors=True)
    first: dict[int, Path] = {}
    for folder, _, names in os.walk(source):
        place = target / os.path.relpath(folder, source)
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            _copy_one(Path(folder, name), place / name, first)


def _copy_one(source: Path, target: Path, first: dict[int, Path]) -> None:
    found = source.stat()
    if found.st_nlink > 1 and found.st_ino in first:
        os.link(first[found.st_ino], target)
        return
    shutil.copyfile(source, target)
    first[found.st_ino] = target


def linked(root: Path) -> dict[str, list[str]]:
    """Return the names of every file of several names, by each of them."""
    names: dict[int, list[str]] = {}
    for path in files_of(root):
        names.setdefault((root / path).stat().st_ino, []).append(path)
    return {path: group for group in names.values() if len(group) > 1 for path in group}


def read_by(action: Callable[[], Any], root: Path) -> tuple[Any, set[str]]:
    """Return what an action returns, and the files below ``root`` that are read meanwhile.

    A file system notes when a file was last read, at least when that was before it was written:
    so no way of opening a file is missed, by any library.
    """
    for path in files_of(root):
        os.utime(root / path, ns=(0, (root / path).stat().st_mtime_ns))
    done = action()
    return done, {path for path in files_of(root) if (root / path).stat().st_atime_ns > 0}
