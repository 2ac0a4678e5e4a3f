"""How a user's modules come in: found for whoever of the user's code asks, run from digested bytes.

One finder stays for the life of the process, since functions import, too. It answers only
imports that stand in the user's own code: what a library imports is never taken from a job's
folder. No compiled cache stands in for a source.
"""

import builtins
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any
from weakref import WeakSet

_MACHINERY = ("importlib", "_frozen_importlib", "runpy", "pkgutil")
kept: dict[tuple[Path, Path], "Kept"] = {}  # by root and file: one module for all who import it
ours: WeakSet[ModuleType] = WeakSet()  # what runs from here, or ran
compiled: dict[int, CodeType] = {}  # what was made of bytes that were digested, by its id


@dataclass
class Kept:
    """A neighbour that this process has run, with every file that running it loaded."""

    module: ModuleType
    files: dict[str, str] = field(default_factory=dict)


class Bytes(importlib.abc.SourceLoader):
    """Compiles bytes that are in memory; sees no compiled cache.

    Attributes:
        code: The ``Code`` that the module belongs to, which answers its imports.
    """

    def __init__(self, code: Any, path: str, source: bytes) -> None:
        self.code, self._path, self._source = code, path, source

    def get_filename(self, fullname: str) -> str:
        return self._path

    def get_data(self, path: Any) -> bytes:
        if str(path) != self._path:
            raise OSError(path)
        return self._source

    def source_to_code(  # type: ignore[override]
        self, data: Any, path: Any = "<string>"
    ) -> CodeType:
        made = super().source_to_code(data, path)
        compiled[id(made)] = made
        return made

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": self._import}
        super().exec_module(module)

    def _import(
        self,
        name: str,
        globals: Any = None,
        locals: Any = None,
        fromlist: Any = (),
        level: int = 0,
    ) -> ModuleType:
        """Import as Python does, with the names that the modules of this code have in it."""
        install()
        with self.code.entered():
            return builtins.__import__(name, globals, locals, fromlist, level)


class Neighbour(Bytes):
    """Runs one neighbour, or hands out the module of it that runs already."""

    def __init__(self, code: Any, path: Path, source: bytes) -> None:
        super().__init__(code, str(path), source)
        self._key = code.root, path
        before = kept.get(self._key)
        self._again = before if before is not None and code.unchanged(before.files) else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None if self._again is None else self._again.module

    def exec_module(self, module: ModuleType) -> None:
        if self._again is not None:
            self.code.note(self._again.files)
            module.__loader__.code = self.code  # type: ignore[union-attr]
            return
        ours.add(module)
        files: dict[str, str] = {}
        with self.code.noting(files):
            self.code.digested(Path(self._path))
            super().exec_module(module)
        kept[self._key] = Kept(module, files)


class _Finder(importlib.abc.MetaPathFinder):
    """Answers the imports of users' code; leaves those of all others to the rest."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        code = None if fullname in sys.builtin_module_names else _asking()
        found = None if code is None else code.find(fullname, path)
        if code is not None and found is not None:
            code.owns(fullname)
        return found


_finder = _Finder()


def install() -> None:
    """Put the finder first, also ahead of hooks that would load something else than the file holds."""
    if sys.meta_path[:1] != [_finder]:
        sys.meta_path[:] = [_finder, *others()]


def others() -> list[Any]:
    """Return all finders but ours."""
    return [finder for finder in sys.meta_path if finder is not _finder]


def owner(frame: Any) -> Any:
    """Return the code whose module a frame runs in, or None."""
    loader = frame.f_globals.get("__loader__")
    return loader.code if isinstance(loader, Bytes) else None


def _asking() -> Any:
    """Return the code in which the import stands that is being answered."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        if name != __name__ and name.partition(".")[0] not in _MACHINERY:
            return owner(frame)
        frame = frame.f_back
    return None
