"""Load a user's Python: digests of its files are compared first, and nothing else of its folder runs.

A file may import its neighbours, when it is loaded and while its functions run. They are
served from the bytes that were digested: no compiled cache stands in for a source, and one
that was not among the files promised is refused before it runs. Without a promise the files
are noted, which makes the promise for the next time; those that functions import are looked
for in the sources. Files of Python and of installed packages are neither noted nor compared,
and nor is what code reads as data or starts as another program.
"""

import importlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from streamfluence.errors import InputError, StreamfluenceError
from streamfluence.user_code import _loader, _net
from streamfluence.user_code._code import MODULE, Code, Files, digest, refuse_changed
from streamfluence.user_code._installed import installed
from streamfluence.user_code._meaning import digest_of_source

__all__ = ["Files", "compare", "digest_of_source", "load_file", "load_module", "still"]


def load_file(
    path: Path, root: Path, name: str, promised: Mapping[str, str] | None
) -> tuple[ModuleType, Files]:
    """Run a file with its folder importable; return it as a module, and the digests of all that ran.

    Args:
        root: Folder that the names of files are relative to.
        name: Of the module.
        promised: Digests of the only files that may run, all compared before any does.

    Returns:
        The digests grow while code of the module imports more.

    Raises:
        InputError: If a file is not as promised, or fails.
    """
    path = path.resolve()
    if promised is not None:
        compare(promised, root)
    code = Code(root, path.parent, promised)
    source = code.digested(path)
    code.holds(path, source, "")
    loader = _loader.Bytes(code, str(path), source)
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    _run(code, name, module, str(path))
    return module, code.files


def load_module(
    name: str, root: Path, promised: Mapping[str, str] | None
) -> tuple[ModuleType, Files]:
    """Import ``package.module`` of the folder ``root``, or else of wherever Python finds it.

    It and its parents are found without importing the parents, and compared before anything is
    imported; outside of ``root`` they are named by their modules.

    Raises:
        InputError: If there is no such module, it fails, or a file is not as promised.
    """
    code, located = _code_of(name, root.resolve(), promised)
    # The name is imported by a line of the user's own, so to speak.
    shown, line = f"<{name}>", f"import {name}".encode()
    code.holds(Path(shown), line, "")
    asking = ModuleType(f"streamfluence_asks_for_{name}")
    asking.__loader__ = _loader.Bytes(code, shown, line)
    _run(code, asking.__name__, asking, name)
    del sys.modules[asking.__name__]
    module = code.module(name)
    file = getattr(module, "__file__", None)
    if file is not None and name in located and not os.path.samefile(file, located[name]):
        raise InputError(f"{name} was imported from {file}, but is found at {located[name]}")
    return module, code.files


def _code_of(
    name: str, root: Path, promised: Mapping[str, str] | None
) -> tuple[Code, dict[str, Path]]:
    """Return the code of a module, compared with what was promised, and its file and its parents'."""
    importlib.invalidate_caches()
    folder, named = root, {}
    located = _located(name, [str(root)])
    if located is None:
        located = _located(name, None)
        if located is None:
            raise InputError(
                f"{name} cannot be imported: there is no module {name}, neither in {root} nor installed"
            )
        folder = _place(located, root)
        named = {path: f"{MODULE}{each}" for each, path in located.items()}
    if promised is not None:
        compare(promised, root)
        refuse_changed({name: digest(name, path) for path, name in named.items()}, promised, "")
    code = Code(root, folder, promised, named)
    for path in located.values():
        code.digested(path)
    return code, located


def compare(promised: Mapping[str, str], root: Path) -> None:
    """Raise InputError unless every file is there with its digest; runs nothing."""
    for name in promised:
        if not name.startswith(MODULE) and not (root / name).is_file():
            raise InputError(f"{root / name} is gone; restore it, or use a new run folder")
    refuse_changed(still(promised, root), promised, f"{root}/")


def still(files: Mapping[str, str], root: Path) -> Files:
    """Return the digests that files have now, of those that are there and named by their paths."""
    paths = {name: root / name for name in files if not name.startswith(MODULE)}
    return {name: digest(name, path) for name, path in paths.items() if path.is_file()}


def _run(code: Code, name: str, module: ModuleType, shown: str) -> None:
    """Run a module as the user's own, with all that it may import known before and after."""
    _loader.install()
    _net.install()
    importlib.invalidate_caches()
    code.look_ahead()
    with code.entered(), code.adding_places():
        sys.modules[name] = module
        try:
            module.__loader__.exec_module(module)  # type: ignore[union-attr]
        except BaseException as error:
            del sys.modules[name]
            if isinstance(error, StreamfluenceError) or not isinstance(error, Exception):
                raise
            raise InputError(
                f"{shown} fails to load: {type(error).__name__}: {' '.join(str(error).split())[:400]}"
            ) from error
        code.look_ahead()


def _located(name: str, places: list[str] | None) -> dict[str, Path] | None:
    """Return the files of a module and its parents, by name, importing none; None if it is nowhere."""
    located: dict[str, Path] = {}
    parts = name.split(".")
    for number in range(1, len(parts) + 1):
        full = ".".join(parts[:number])
        found = _spec(full, places) if number == 1 or places is not None else None
        if found is None:
            return None
        if found.origin is not None and Path(found.origin).is_file():
            located[full] = Path(found.origin)
        places = _places(found)
    return located


def _spec(name: str, places: list[str] | None) -> importlib.machinery.ModuleSpec | None:
    if places is not None:
        return importlib.machinery.PathFinder.find_spec(name, places)
    loaded = sys.modules.get(name)
    if loaded is not None and loaded not in _loader.ours and loaded.__spec__ is not None:
        return loaded.__spec__
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


def _place(located: Mapping[str, Path], root: Path) -> Path:
    """Return the folder that a module's outermost package lies in, if that is the user's."""
    if all(map(installed, located.values())):
        return root  # what lies beside it is installed as well
    first = min(located, key=len)
    return located[first].parents[first.count(".") + (located[first].stem == "__init__")]
