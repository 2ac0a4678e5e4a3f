"""The code of one load: which files it may run, where it finds them, and under which names."""

import importlib.machinery
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakSet

from streamfluence.errors import InputError
from streamfluence.user_code import _loader
from streamfluence.user_code._ahead import imported
from streamfluence.user_code._installed import installed
from streamfluence.user_code._meaning import digest_of_code

Files = dict[str, str]  # sha256 by path relative to the job's folder, or by `module NAME`
MODULE = "module "
# What this program runs on is no code of the user's, wherever it is installed.
_PROGRAM = frozenset(
    ["streamfluence", "torch", "numpy", "zarr", "numcodecs", "dask", "distributed"]
)

_lock = threading.RLock()
_entered: list["Code"] = []
_names: set[str] = set()  # of every module that any user's code has
_added: set[str] = set()  # to ``sys.path``, by any user's code
loads: WeakSet["Code"] = WeakSet()


class Code:
    """The files of one load.

    Args:
        root: Folder that the names of files are relative to.
        folder: Where this code finds its neighbours, ahead of modules elsewhere.
        promised: Digests of the only files that may run; None notes what does.
        named: Names of files that are found by their module's name wherever they lie.

    Attributes:
        files: Digests of what was loaded; grows while code runs that imports more.
        added: What the load put on ``sys.path``.
    """

    def __init__(
        self,
        root: Path,
        folder: Path,
        promised: Mapping[str, str] | None,
        named: Mapping[Path, str] | None = None,
    ) -> None:
        self.root, self.folder, self.promised = root.resolve(), folder, promised
        self.files: Files = {}
        self.added: list[str] = []
        self._named = dict(named or {})
        self._running: list[Files] = [self.files]  # of every module being run, the outermost first
        self._modules: dict[str, ModuleType] = {}
        self._sources: dict[Path, tuple[bytes, str]] = {}  # with the package of each
        self._digests: dict[str, str | None] = {}
        loads.add(self)

    def find(self, name: str, path: Sequence[str] | None) -> importlib.machinery.ModuleSpec | None:
        """Return how to load a module that is the user's; None for what is installed, or nowhere.

        Raises:
            InputError: If its file may not run.
        """
        found = self._spec_of(name, path)
        if found is None:
            return None
        if found.origin is None:  # a mere folder
            places = found.submodule_search_locations or []
            found.submodule_search_locations = list(places)
            return found
        origin = Path(found.origin)
        source = self.digested(origin)
        if isinstance(found.loader, importlib.machinery.SourceFileLoader):
            self.holds(origin, source, found.parent or "")
            found.loader = _loader.Neighbour(self, origin, source)
        return found

    def holds(self, path: Path, source: bytes, package: str) -> None:
        """Remember a source, whose own imports are looked for later."""
        self._sources[path] = source, package

    def look_ahead(self) -> None:
        """Note also what the sources import only once their functions run.

        Raises:
            InputError: If one of these files may not run.
        """
        seen: set[Path] = set()
        names: set[str] = set()
        while waiting := self._sources.keys() - seen:
            seen |= waiting
            for path in sorted(waiting):
                new = set(imported(*self._sources[path])) - names
                names |= new
                for name in sorted(new):
                    self._look_for(name)

    def _look_for(self, name: str) -> None:
        places: list[str] | None = None
        parts = name.split(".")
        for number in range(1, len(parts) + 1):
            full = ".".join(parts[:number])
            if self._hidden(full):
                _names.add(full)  # and so it gives way once this code is entered
            found = self.find(full, places)
            if found is None or found.submodule_search_locations is None:
                return
            places = list(found.submodule_search_locations)

    def _hidden(self, name: str) -> bool:
        """Return whether a module that the program's caller loaded is in the way of a neighbour."""
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is None or installed(file) or "." in name:
            return False
        return _filed(importlib.machinery.PathFinder.find_spec(name, [str(self.folder)]))

    def _spec_of(
        self, name: str, path: Sequence[str] | None
    ) -> importlib.machinery.ModuleSpec | None:
        beside = None
        if name.partition(".")[0] in _PROGRAM:
            return None
        if path is None:
            beside = importlib.machinery.PathFinder.find_spec(name, [str(self.folder)])
            if beside is not None and _filed(beside):
                return beside
        for finder in _loader.others():
            found = finder.find_spec(name, path, None) if hasattr(finder, "find_spec") else None
            if found is None:
                continue
            if not _filed(found):
                return None if found.origin is not None or beside is None else beside
            return None if installed(str(found.origin), self.folder) else found
        return beside  # a mere folder, which gives way to a package elsewhere

    def module(self, name: str) -> ModuleType:
        """Return the module that has a name in this code."""
        return self._modules.get(name) or sys.modules[name]

    def digested(self, path: Path) -> bytes:
        """Return the content of a file, noted; InputError if it may not run.

        What lies in an archive is as the archive is.
        """
        file = next((each for each in (path, *path.parents) if each.is_file()), path)
        try:
            source = file.read_bytes()
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}") from error
        name = self._named.get(file) or Path(os.path.relpath(file, self.root)).as_posix()
        self.note({name: digest_of_code(name, source)})
        return source

    def note(self, files: Files) -> None:
        """Add files to what is loaded, or refuse them."""
        for name in files:
            if self.promised is not None and name not in self.promised:
                raise InputError(
                    f"{self._shown(name)} would be imported, but was not among the code of the run when "
                    f"it was made; remove it, or use a new run folder (code that is imported by a name "
                    f"made at run time is found if that happens when the file is loaded)"
                )
        if self.promised is not None:
            refuse_changed(files, self.promised, f"{self.root}/")
        for noted in self._running:
            noted.update(files)

    def _shown(self, name: str) -> Any:
        return name if name.startswith(MODULE) else Path(os.path.normpath(self.root / name))

    def unchanged(self, files: Files) -> bool:
        """Return whether files that were loaded before are as they were when this code first asked."""
        return all(
            self._digest_now(name) == files[name] for name in files if not name.startswith(MODULE)
        )

    def _digest_now(self, name: str) -> str | None:
        # Asked for every module of what each brought along: thousands of times thousands.
        if name not in self._digests:
            path = self.root / name
            self._digests[name] = digest(name, path) if path.is_file() else None
        return self._digests[name]

    def owns(self, name: str) -> None:
        """Have a name be one of users' modules, which other code of users' may use for another."""
        _names.add(name)

    @contextmanager
    def noting(self, files: Files) -> Iterator[None]:
        """Note what is loaded in ``files``, too."""
        self._running.append(files)
        try:
            yield
        finally:
            self._running.remove(files)

    @contextmanager
    def adding_places(self) -> Iterator[None]:
        """Tell what this code puts on ``sys.path`` from what other code of users' has there."""
        others = [place for place in sys.path if place in _added]
        sys.path[:] = [place for place in sys.path if place not in _added]
        before = set(sys.path)
        try:
            yield
        finally:
            new = [place for place in sys.path if place not in before]
            self.added = [os.path.abspath(place) for place in new]
            _added.update(new)
            sys.path.extend(place for place in others if place not in new)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Give the modules of this code their names for a while, which those of other code may have.

        A module of the program's caller has its name again afterwards; of two of the users' the
        later one keeps it.
        """
        with _lock:
            if _entered[-1:] == [self]:
                yield
                return
            before = {name: sys.modules[name] for name in list(_names) if _is_users(name)}
            for name in before:
                del sys.modules[name]
            sys.modules.update(self._modules)
            _entered.append(self)
            try:
                yield
            finally:
                _entered.pop()
                self._modules = {
                    name: sys.modules[name] for name in list(_names) if _is_users(name)
                }
                theirs = {name: m for name, m in before.items() if m not in _loader.ours}
                _loader.ours.update(self._modules.values())
                for name, module in before.items():
                    sys.modules.setdefault(name, module)
                sys.modules.update(theirs)


def refuse_changed(files: Files, promised: Mapping[str, Any], prefix: str) -> None:
    """Raise InputError unless every digest is the promised one."""
    for name, digest in files.items():
        if promised.get(name) != digest:
            raise InputError(
                f"{'' if name.startswith(MODULE) else prefix}{name} changed since the run was made, and "
                f"its code was not run; what it makes would not match what is stored, so restore it or "
                f"use a new run folder"
            )


def digest(name: str, path: Path) -> str:
    """Return the digest of a file of code, see ``digest_of_code``; InputError if it cannot be read."""
    try:
        return digest_of_code(name, path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _is_users(name: str) -> bool:
    """Return whether a module that has a name now is the user's, not an installed one."""
    module = sys.modules.get(name)
    if module is None or name not in _names:
        return False
    file = getattr(module, "__file__", None)
    return module in _loader.ours or file is None or not installed(file)


def _filed(found: importlib.machinery.ModuleSpec | None) -> bool:
    """Return whether a module is made of a file, or of something in an archive that is one."""
    if found is None or found.origin is None or not found.has_location:
        return False
    path = Path(found.origin)
    return any(each.is_file() for each in (path, *path.parents))
