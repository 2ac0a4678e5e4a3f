"""Ids, groups and previews of the examples that a result names, stored with it.

So that a result is read without the data and without any code: it shows the examples
that were scored, also when the data moved or changed since. Ids and group numbers come
from the stored rows; names of groups and previews from the reader, once, when the result
is made, after its data was found to be what the run pinned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamfluence.columns import EXAMPLE_ID, GROUP, LOSS
from streamfluence.data.base import Reader
from streamfluence.errors import DamageError, StorageError
from streamfluence.readouts.base import Arrays, Readout
from streamfluence.run.columns import values_at
from streamfluence.run.identity import pinned_reader
from streamfluence.run.opened import OpenRun
from streamfluence.run.prepared import prepared_receipt
from streamfluence.run.rows import StoredRows
from streamfluence.run.sets import query_count
from streamfluence.run.source import DIRECTIONS, of_rows
from streamfluence.store import Receipt, array_names
from streamfluence.store.text import decode_ids, encode_text

PREFIX = "named."
MOST_PREVIEWS = 20_000  # of each set: seconds to read, a few MiB to keep


@dataclass(frozen=True)
class Named:
    """What is known of the examples of one set that a result names.

    Attributes:
        rows: Global rows, sorted, ``(example,)`` int64.
        columns: By name, one value an example: ``id``, ``loss``, and where there are such ``group``
            and ``preview``.
    """

    rows: np.ndarray
    columns: Mapping[str, np.ndarray]

    def of(self, row: int, name: str) -> Any:
        """Return one value of an example as a plain Python object; None where there is none."""
        place = int(np.searchsorted(self.rows, row))
        if place >= len(self.rows) or self.rows[place] != row:
            raise DamageError(
                f"the result names row {row:,}, of which nothing is stored with it; score again"
            )
        if name not in self.columns:
            return None
        value = self.columns[name][place].item()
        return None if name == "preview" and value == "" else value


def name_examples(
    run: OpenRun,
    label: str,
    spec: Mapping[str, Any],
    readouts: Mapping[str, Readout],
    results: Mapping[str, Arrays],
) -> tuple[Arrays, dict[str, Any]]:
    """Return the arrays to store with a result, and why previews are lacking where they are.

    Returns:
        Arrays by name, those of the training set and those of all queries; and
        ``{"previews": {set: None or a sentence}}``.
    """
    example_set, stored = spec["queries"], of_rows(spec)
    listed = [readouts[name].named_rows(result) for name, result in results.items()]
    first = np.concatenate([rows for rows in listed] or [np.empty(0, np.int64)])
    queries = np.arange(query_count(run, example_set))
    arrays: Arrays = {}
    notes = {}
    for role, name, wanted in (("train", "train", first), ("queries", example_set, queries)):
        found, notes[role] = _of_set(run, name, wanted, stored)
        arrays |= {f"{PREFIX}{role}.{key}": array for key, array in found.items()}
    if not stored:
        receipt = prepared_receipt(run, label)
        arrays[f"{PREFIX}queries.loss"] = run.read(receipt, f"{DIRECTIONS}.value")
    return arrays, {"previews": notes}


def compressed(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Return the compressor of every such array: text of one width is mostly fill."""
    return {key: "zstd" for key, array in arrays.items() if key.startswith(PREFIX) and array.size}


def named(run: OpenRun, receipt: Receipt, role: str) -> Named:
    """Return what a result has stored of the examples it names.

    Args:
        role: ``train`` or ``queries``.
    """
    prefix, found = f"{PREFIX}{role}.", {}
    for name in array_names(receipt):
        if name.startswith(prefix):
            array = run.read(receipt, name)
            found[name.removeprefix(prefix)] = decode_ids(array)
    rows = found.pop("row", np.empty((0, 0)))
    sound = rows.ndim == 1 and rows.dtype.kind == "i" and bool((np.diff(rows) > 0).all())
    if not sound or "id" not in found or any(a.shape != rows.shape for a in found.values()):
        raise DamageError(
            f"the result {receipt.stage} of {run.url} does not say which examples it names; score "
            f"again under another --name"
        )
    return Named(rows, found)


def _of_set(
    run: OpenRun, example_set: str, wanted: np.ndarray, stored: bool
) -> tuple[Arrays, str | None]:
    """Return the columns of some rows, in any order and with repeats, and why there are no previews.

    Args:
        stored: Whether rows of the set are; where not, ids and groups are the reader's.
    """
    rows = np.unique(wanted)
    found: Arrays = {"row": rows}
    found |= _stored(run, example_set, rows) if stored else _read(run, example_set, rows)
    shown = np.sort(_first_of(wanted))
    try:
        reader = pinned_reader(run, example_set)[0]
        previews = [reader.preview(int(row)) or "" for row in shown]
        groups = _group_names(reader, found.get("group"))
    except (StorageError, MemoryError):
        raise
    except Exception as error:  # the user's own code may raise anything, and no score depends on it
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return _as_text(found), f"the data could not be read when this was scored: {reason}"
    if groups is not None:
        found["group"] = groups
    lines = np.full(len(rows), "", object)
    lines[np.searchsorted(rows, shown)] = previews
    found["preview"] = lines.astype(np.str_)
    left = len(rows) - len(shown)
    note = f"of the {len(shown):,} examples listed first; {left:,} have none" if left else None
    return _as_text(found), note


def _stored(run: OpenRun, example_set: str, rows: np.ndarray) -> Arrays:
    stored = StoredRows(run, example_set, 0)
    columns = (("id", EXAMPLE_ID), ("loss", LOSS), ("group", GROUP))
    values = {key: values_at(stored, column, rows) for key, column in columns}
    return {key: array for key, array in values.items() if array is not None}


def _read(run: OpenRun, example_set: str, rows: np.ndarray) -> Arrays:
    """Return ids and groups from the reader, as rows would have them."""
    reader = pinned_reader(run, example_set)[0]
    ids = [reader.example_ids(row, row + 1) for row in rows.tolist()]
    groups = [reader.groups(row, row + 1) for row in rows.tolist()]
    found = {
        "id": [np.array([row]) if one is None else one for row, one in zip(rows, ids, strict=True)],
        "group": [one for one in groups if one is not None],
    }
    none = {"id": np.empty(0, np.int64)}
    return none | {key: np.concatenate(pieces) for key, pieces in found.items() if pieces}


def _first_of(wanted: np.ndarray) -> np.ndarray:
    """Return the distinct rows that come first, at most as many as are previewed."""
    distinct, place = np.unique(wanted, return_index=True)
    return distinct[np.argsort(place, kind="stable")][:MOST_PREVIEWS]


def _group_names(reader: Reader, groups: np.ndarray | None) -> np.ndarray | None:
    if groups is None:
        return None
    distinct, place = np.unique(groups, return_inverse=True)
    names: Sequence[str] = [str(reader.group_name(int(group))) for group in distinct]
    return np.array(names, np.str_)[place]


def _as_text(columns: Arrays) -> Arrays:
    """Return the columns as they are stored: a group always by name, strings as bytes."""
    if "group" in columns:
        columns["group"] = columns["group"].astype(np.str_)
    return {
        key: encode_text(array) if array.dtype.kind == "U" else array
        for key, array in columns.items()
    }
