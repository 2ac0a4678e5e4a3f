"""Load what the user names in Python: ``my_data.py:name`` or ``package.module:name``."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamfluence.errors import InputError
from streamfluence.user_code import Files, load_file, load_module


def load_named(
    option: str, reference: str, root: Path, promised: Mapping[str, str] | None = None
) -> tuple[Any, Path | None, Files]:
    """Return the named object, its source file (None for modules without one), and digests of all loaded.

    Args:
        promised: Digests of the only files that may run; see ``user_code``.

    Raises:
        InputError: If the reference is malformed, the file or module fails to load, or a file is
            not as promised.
    """
    source, colon, name = reference.rpartition(":")
    if not (colon and source and name):
        raise InputError(
            f"{option} must be 'file.py:name' or 'package.module:name', not {reference!r}"
        )
    if source.endswith(".py"):
        module, files = _from_file(root, root / source, promised)
    else:
        try:
            module, files = load_module(source, root, promised)
        except InputError as error:
            raise InputError(f"{option}: {error}") from error
    if not hasattr(module, name):
        raise InputError(f"{option}: {source} defines no {name!r}")
    file = getattr(module, "__file__", None)
    return getattr(module, name), None if file is None else Path(file), files


def one_sentence(error: BaseException) -> str:
    """Return an exception of the user's code as one short sentence."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def _from_file(root: Path, path: Path, promised: Mapping[str, str] | None) -> tuple[Any, Files]:
    if not path.is_file():
        raise InputError(f"{path} does not exist; check `dataset` and `collate` in the job")
    path = path.resolve()
    # The name is the path's hash: two jobs in one process may both have a data.py.
    name = f"streamfluence_data_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    return load_file(path, root, name, promised)
