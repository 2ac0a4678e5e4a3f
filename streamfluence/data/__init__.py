"""Readers of training and query sets: a job's table opens one of them by name.

The helpers for batches are imported when first used, so that listing the readers
loads neither torch nor numpy.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamfluence.errors import InputError
from streamfluence.options import make
from streamfluence.registry import member, names

if TYPE_CHECKING:
    from streamfluence.data._batches import (
        batch_length,
        concatenate,
        input_digest,
        map_batch,
        select_batch,
        slice_batch,
        to_tensors,
    )
    from streamfluence.data._prefetch import prefetch
    from streamfluence.data.base import Reader

__all__ = [
    "batch_length",
    "concatenate",
    "input_digest",
    "map_batch",
    "open_reader",
    "prefetch",
    "select_batch",
    "slice_batch",
    "to_tensors",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "_prefetch" if name == "prefetch" else "_batches"
    return getattr(import_module(f"{__name__}.{module}"), name)


_NOT_ITS_OWN = ("reader", "measurement")  # entries of a table that are not options of its reader


def places_of(table: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the options of a reader's table that only say where files lie."""
    found: tuple[str, ...] = member("data", table["reader"]).places
    return found


def open_reader(table: Mapping[str, Any], root: Path) -> "Reader":
    """Open the reader that ``table["reader"]`` names with the table's other entries as options.

    Args:
        table: ``[train]`` or ``[queries.NAME]`` of a job.
        root: The job's folder, against which relative paths resolve.

    Raises:
        InputError: If the reader, an option or a required option is unknown, wrong or missing.
    """
    if not isinstance(table, Mapping) or "reader" not in table:
        raise InputError(
            f"a data set needs reader = NAME; there are: {', '.join(names('data'))} (got {table!r})"
        )
    options = {key: value for key, value in table.items() if key not in _NOT_ITS_OWN}
    made: Reader = make("data", table["reader"], options, Path(root))
    return made
