"""Load what the user names in Python: ``my_data.py:name`` or ``package.module:name``."""

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from streamfluence.errors import InputError


def load_named(option: str, reference: str, root: Path) -> tuple[Any, Path | None]:
    """Return the named object and its source file (None for modules without one).

    Raises:
        InputError: If the reference is malformed, or the file or module fails to load.
    """
    source, colon, name = reference.rpartition(":")
    if not (colon and source and name):
        raise InputError(
            f"{option} must be 'file.py:name' or 'package.module:name', not {reference!r}"
        )
    module = _from_file(root / source) if source.endswith(".py") else _from_package(option, source)
    if not hasattr(module, name):
        raise InputError(f"{option}: {source} defines no {name!r}")
    file = getattr(module, "__file__", None)
    return getattr(module, name), None if file is None else Path(file)


def one_sentence(error: BaseException) -> str:
    """Return an exception of the user's code as one short sentence."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"{path} does not exist; check `dataset` and `collate` in the job")
    path = path.resolve()
    # The name is the path's hash: two jobs in one process may both have a data.py.
    name = f"streamfluence_data_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # so that what it defines can be pickled by name
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"{path} fails to load: {one_sentence(error)}") from error
    return module


def _from_package(option: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise InputError(f"{option}: {name} cannot be imported: {one_sentence(error)}") from error
