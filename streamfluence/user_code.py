"""Load a user's Python: digests of its files are compared first, and nothing else of its folder runs.

A file may import its neighbours, which the folder's own finder serves from the bytes that
were digested: no compiled cache stands in for a source, and a neighbour that was not among
the files promised is refused before it runs. Without a promise the files are noted, which
makes the promise for the next time.
"""

import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from streamfluence.errors import InputError, StreamfluenceError

Files = dict[str, str]  # sha256 by path relative to the job's folder, or by `module NAME`
_MODULE = "module "


@dataclass
class _Kept:
    """A neighbour that this process has run, with every file that running it loaded."""

    module: ModuleType
    files: Files = field(default_factory=dict)


_kept: dict[tuple[Path, Path], _Kept] = {}  # by root and file: one module for all who import it
_names: dict[str, ModuleType] = {}  # the names that neighbours have now


def load_file(
    path: Path, root: Path, name: str, promised: Mapping[str, str] | None
) -> tuple[ModuleType, Files]:
    """Run a file with its folder importable; return it as a module, and the digests of all that ran.

    Args:
        root: Folder that the names of files are relative to.
        name: Of the module.
        promised: Digests of the only files that may run, all compared before any does.

    Raises:
        InputError: If a file is not as promised, or fails.
    """
    path = path.resolve()
    if promised is not None:
        compare(promised, root)
    finder = _Folder(path.parent, root, promised)
    source = finder.digested(path)
    module = ModuleType(name)
    module.__file__ = str(path)
    module.__loader__ = _Bytes(str(path), source)
    module.__spec__ = importlib.util.spec_from_file_location(name, path, loader=module.__loader__)
    with finder.installed():
        sys.modules[name] = module
        try:
            exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
        except BaseException as error:
            del sys.modules[name]
            if isinstance(error, StreamfluenceError) or not isinstance(error, Exception):
                raise
            raise InputError(
                f"{path} fails to load: {type(error).__name__}: {' '.join(str(error).split())[:400]}"
            ) from error
    return module, finder.files[-1]


def load_module(name: str, promised: Mapping[str, str] | None) -> tuple[ModuleType, Files]:
    """Import ``package.module``; return it with the digests of its file and those of its parents.

    They are found without importing the parents, and compared before anything is imported.

    Raises:
        InputError: If there is no such module, it fails, or a file is not as promised.
    """
    located = _located(name)
    files = {f"{_MODULE}{each}": _sha256(path) for each, path in located.items()}
    if promised is not None:
        _refuse_changed(files, promised, "")
    try:
        module = importlib.import_module(name)
    except StreamfluenceError:
        raise
    except Exception as error:
        raise InputError(
            f"{name} cannot be imported: {type(error).__name__}: {' '.join(str(error).split())[:400]}"
        ) from error
    file = getattr(module, "__file__", None)
    if file is not None and name in located and not os.path.samefile(file, located[name]):
        raise InputError(f"{name} was imported from {file}, but is found at {located[name]}")
    return module, files


def compare(promised: Mapping[str, str], root: Path) -> None:
    """Raise InputError unless every file is there with its digest; runs nothing."""
    found = {}
    for name in promised:
        if name.startswith(_MODULE):
            continue  # compared when it is located
        path = root / name
        if not path.is_file():
            raise InputError(f"{path} is gone; restore it, or use a new run folder")
        found[name] = _sha256(path)
    _refuse_changed(found, promised, f"{root}/")


def _refuse_changed(found: Files, promised: Mapping[str, Any], prefix: str) -> None:
    for name, digest in found.items():
        if promised.get(name) != digest:
            raise InputError(
                f"{prefix}{name} changed since the run was made, and its code was not run; what it makes "
                f"would not match what is stored, so restore it or use a new run folder"
            )


class _Bytes(importlib.abc.SourceLoader):
    """Compiles bytes that are in memory; sees no compiled cache."""

    def __init__(self, path: str, source: bytes) -> None:
        self._path, self._source = path, source

    def get_filename(self, fullname: str) -> str:
        return self._path

    def get_data(self, path: Any) -> bytes:
        if str(path) != self._path:
            raise OSError(path)
        return self._source


class _Neighbour(_Bytes):
    """Runs one neighbour, or hands out the module of it that runs already."""

    def __init__(self, folder: "_Folder", path: Path, source: bytes) -> None:
        super().__init__(str(path), source)
        self._folder, self._key = folder, (folder.root, path)
        kept = _kept.get(self._key)
        self._again = kept if kept is not None and folder.unchanged(kept.files) else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None if self._again is None else self._again.module

    def exec_module(self, module: ModuleType) -> None:
        _names[module.__name__] = module
        if self._again is not None:
            self._folder.note(self._again.files)
            return
        files: Files = {}
        self._folder.files.append(files)
        self._folder.digested(Path(self._path))
        try:
            super().exec_module(module)
        finally:
            self._folder.files.pop()
        _kept[self._key] = _Kept(module, files)


class _Folder(importlib.abc.MetaPathFinder):
    """Finds modules in one folder, and only files that may run.

    Attributes:
        files: What was loaded, of every module that is being run, the outermost first.
    """

    def __init__(self, folder: Path, root: Path, promised: Mapping[str, str] | None) -> None:
        self._folder, self.root, self._promised = folder, root.resolve(), promised
        self.files: list[Files] = [{}]

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        place = str(self._folder.joinpath(*fullname.split(".")[:-1]))
        if path is not None and place not in path:
            return None  # of a package that lies elsewhere
        found = importlib.machinery.PathFinder.find_spec(fullname, [place])
        if found is None or found.origin is None or not Path(found.origin).is_file():
            return (
                None  # a mere folder of that name, perhaps, which gives way to a package elsewhere
            )
        source, origin = self.digested(Path(found.origin)), Path(found.origin)
        if isinstance(found.loader, importlib.machinery.SourceFileLoader):
            found.loader = _Neighbour(self, origin, source)
        return found

    def digested(self, path: Path) -> bytes:
        """Return the content of a file, noted; InputError if it may not run."""
        try:
            source = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        name = Path(os.path.relpath(path, self.root)).as_posix()
        self.note({name: hashlib.sha256(source).hexdigest()})
        return source

    def note(self, files: Files) -> None:
        """Add files to what is loaded, or refuse them."""
        for name in files:
            if self._promised is not None and name not in self._promised:
                raise InputError(
                    f"{self.root / name} would be imported, but was not among the code of the run when "
                    f"it was made; remove it, or use a new run folder"
                )
        if self._promised is not None:
            _refuse_changed(files, self._promised, f"{self.root}/")
        for noted in self.files:
            noted.update(files)

    def unchanged(self, files: Files) -> bool:
        """Return whether files that were loaded before are still as they were."""
        paths = {name: self.root / name for name in files}
        return all(path.is_file() and _sha256(path) == files[name] for name, path in paths.items())

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let imports find the folder's modules for a while, ahead of those of the same name elsewhere."""
        importlib.invalidate_caches()
        before = {name: m for name, m in _names.items() if sys.modules.get(name) is m}
        for name in before:
            del sys.modules[name]
        places = [i for i, f in enumerate(sys.meta_path) if f is importlib.machinery.PathFinder]
        sys.meta_path.insert(places[0] if places else len(sys.meta_path), self)
        sys.path.insert(0, str(self._folder))
        try:
            yield
        finally:
            sys.meta_path.remove(self)
            sys.path.remove(str(self._folder))
            for name, module in before.items():
                sys.modules.setdefault(name, module)


def _located(name: str) -> dict[str, Path]:
    """Return the files of a module and its parents, by name, importing none of them."""
    located: dict[str, Path] = {}
    places: list[str] | None = None
    parts = name.split(".")
    for number in range(1, len(parts) + 1):
        full = ".".join(parts[:number])
        found = _spec(full, places) if number == 1 or places is not None else None
        if found is None:
            raise InputError(f"{name} cannot be imported: there is no module {full}")
        if found.origin is not None and Path(found.origin).is_file():
            located[full] = Path(found.origin)
        places = _places(found)
    return located


def _spec(name: str, places: list[str] | None) -> importlib.machinery.ModuleSpec | None:
    loaded = getattr(sys.modules.get(name), "__spec__", None)
    if loaded is not None:
        return loaded
    for finder in sys.meta_path:
        found = finder.find_spec(name, places, None)
        if found is not None:
            return found
    return None


def _places(found: importlib.machinery.ModuleSpec) -> list[str] | None:
    """Return where a package's modules lie; None for what is no package."""
    locations: Any = found.submodule_search_locations
    if locations is None:
        return None
    try:
        return list(locations)
    except KeyError:  # a folder without __init__ inside a package that is not imported
        return list(locations._path)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
