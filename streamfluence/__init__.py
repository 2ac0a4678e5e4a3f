"""Training-data attribution as an out-of-core job.

``import streamfluence`` loads neither torch nor dask nor numpy, so that a
command starts at once: ``open`` and ``Run`` are imported when first used.
"""

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
]

_LAZY = {"Run": "streamfluence.api", "open": "streamfluence.api"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
