"""Training-data attribution as an out-of-core job.

``import streamfluence`` loads neither torch nor dask nor numpy, so that a
command starts at once: ``open``, ``Run`` and ``record`` are imported when first used.

``python -m streamfluence`` would let every import look in the working folder first, which
may be a run that somebody else made: it is taken away before anything is imported.
"""

# ruff: noqa: E402 (what is imported further down may be what lies in the working folder)
import sys

# While Python looks for what -m names, argv begins with that; later it is a path.
_asked = sys.orig_argv[-len(sys.argv)] if sys.argv[:1] == ["-m"] else ""
if _asked.removeprefix("-m") == "streamfluence" and not sys.flags.safe_path:
    del sys.path[0]

from importlib import import_module
from typing import TYPE_CHECKING, Any

from streamfluence.errors import (
    BudgetError,
    CoverageError,
    DamageError,
    IncompleteError,
    InputError,
    Interrupted,
    NonFiniteError,
    StorageError,
    StreamfluenceError,
)

if TYPE_CHECKING:
    from streamfluence.api import Run, open
    from streamfluence.recording import record

__version__ = "0.1.0"

__all__ = [
    "BudgetError",
    "CoverageError",
    "DamageError",
    "IncompleteError",
    "InputError",
    "Interrupted",
    "NonFiniteError",
    "Run",
    "StorageError",
    "StreamfluenceError",
    "__version__",
    "open",
    "record",
]

_LAZY = {
    "Run": "streamfluence.api",
    "open": "streamfluence.api",
    "record": "streamfluence.recording",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
