"""Packages that some readers need and an installation may lack."""

from importlib import import_module
from typing import Any

from streamfluence.errors import InputError


def wanted(module: str, extra: str) -> Any:
    """Return a module of an optional package.

    Args:
        module: Such as ``pyarrow.parquet``.
        extra: Of streamfluence, which brings it.

    Raises:
        InputError: If it is not installed; the message says how to install it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise InputError(
            f"this reader needs {package}, which cannot be imported ({error}); "
            f"pip install 'streamfluence[{extra}]'"
        ) from error
