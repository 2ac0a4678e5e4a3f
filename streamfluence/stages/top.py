"""The examples that help and hurt one query most, with what a person needs to judge them."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from streamfluence.data import open_reader
from streamfluence.data.base import Reader
from streamfluence.errors import IncompleteError, InputError, StreamfluenceError
from streamfluence.layout import collect_stage
from streamfluence.stages._record import record
from streamfluence.stages._sets import score_names, set_facts
from streamfluence.store import RunStore, array_names
from streamfluence.store.text import decode_ids

DEFAULT_K = 10


def top(
    run_path: str,
    query: str,
    k: int | None = None,
    positive: bool = True,
    negative: bool = True,
    name: str | None = None,
) -> dict[str, Any]:
    """Return the ranked examples of one query.

    Args:
        query: ``INDEX``, or ``SET/INDEX`` when the run has several scores.
        k: Examples in each list; by default 10, or as many as the scores kept if that is fewer.
        positive, negative: Whether to list those that help, and those that hurt.
        name: Of the scores, when it is not the query set's.

    Returns:
        ``query`` (set, row, loss, preview), ``helps`` and ``hurts`` (lists of rank, row, id,
        score, loss, self_influence, preview), and ``record``: what the numbers are and came from.

    Raises:
        IncompleteError: If the run has no such scores yet.
        InputError: If there is no such query.
    """
    store = RunStore.open(run_path)
    label, row = parse_query(store, query, name)
    spec = store.read_document(f"scores/{label}/score.json")
    receipt = finished(store, label)
    if "top_k.positive_rows" not in array_names(receipt):
        raise InputError(
            f"scores {label!r} were made without the readout top_k; add it to score.readouts"
        )
    count = set_facts(store, spec["queries"])["count"]
    if not 0 <= row < count:
        raise InputError(f"query {row}: {spec['queries']!r} has queries 0 to {count - 1}")
    listed = store.read(receipt, "top_k.positive_rows").shape[1]
    if k is None:
        k = min(DEFAULT_K, listed)
    if not 1 <= k <= listed:
        raise InputError(
            f"{k} examples were asked for, but scores {label!r} kept {listed} (score.top_k); "
            f"ask for 1 to {listed}"
        )
    wanted = {"helps": ("positive", positive), "hurts": ("negative", negative)}
    sides = {key: _side(store, receipt, side, row, k) for key, (side, on) in wanted.items() if on}
    return {"query": _query(store, spec["queries"], row), **sides, "record": record(store, label)}


def parse_query(store: RunStore, query: str, name: str | None) -> tuple[str, int]:
    """Return the name of the scores and the row of the query."""
    label, _, number = query.rpartition("/")
    if not re.fullmatch(r"-?[0-9]+", number):
        raise InputError(f"query {query!r} is neither INDEX nor SET/INDEX")
    names = score_names(store)
    label = name or label
    if not label:
        if len(names) != 1:
            known = ", ".join(names) or "none yet: run `streamfluence score`"
            raise (InputError if names else IncompleteError)(
                f"{store.url} has {len(names)} scores ({known}); name one as SET/{number}"
            )
        label = names[0]
    if label not in names:
        raise InputError(
            f"{store.url} has no scores {label!r}; there are: {', '.join(names) or 'none'}"
        )
    return label, int(number)


def finished(store: RunStore, label: str) -> Any:
    """Return the receipt of finished scores.

    Raises:
        IncompleteError: If they are not finished.
    """
    receipt = store.receipt(f"scores/{label}", 0)
    if receipt is None:
        raise IncompleteError(
            f"scores {label!r} of {store.url} are not finished; run `streamfluence score`"
        )
    return receipt


def previewer(store: RunStore, example_set: str) -> Reader | None:
    """Return the reader that shows examples to a person; None when the data is no longer there."""
    try:
        return open_reader(
            dict(set_facts(store, example_set)["table"]), Path(store.manifest["root"])
        )
    except StreamfluenceError:
        return None


def stored_value(store: RunStore, example_set: str, name: str, row: int) -> Any:
    """Return one stored number of one example, of the first checkpoint; None when it is not there."""
    partition = row // set_facts(store, example_set)["partition_examples"]
    receipt = store.receipt(collect_stage(example_set, 0), partition)
    if receipt is None or name not in array_names(receipt):
        return None
    place = row - receipt.start
    found = store.read(receipt, name, rows=slice(place, place + 1))
    return (decode_ids(found) if name == "example_id" else found)[0].item()


def _query(store: RunStore, example_set: str, row: int) -> dict[str, Any]:
    reader = previewer(store, example_set)
    return {
        "set": example_set,
        "row": row,
        "id": stored_value(store, example_set, "example_id", row),
        "measurement": stored_value(store, example_set, "loss", row),
        "preview": reader and reader.preview(row),
    }


def _side(store: RunStore, receipt: Any, side: str, query: int, k: int) -> list[dict[str, Any]]:
    """Return one ranked list of a query, as JSON-able rows."""
    fields = {
        name: store.read(receipt, f"top_k.{side}_{name}")[query, :k]
        for name in ("rows", "scores", "loss", "self_influence")
    }
    reader = previewer(store, "train")
    return [
        {
            "rank": rank + 1,
            "row": int(row),
            "id": stored_value(store, "train", "example_id", int(row)),
            "group": _group(store, reader, int(row)),
            "score": float(fields["scores"][rank]),
            **{name: float(fields[name][rank]) for name in ("loss", "self_influence")},
            "preview": reader and reader.preview(int(row)),
        }
        for rank, row in enumerate(fields["rows"])
        if row >= 0 and np.isfinite(fields["scores"][rank])
    ]


def _group(store: RunStore, reader: Reader | None, row: int) -> str | None:
    group = stored_value(store, "train", "group", row)
    return None if group is None or reader is None else reader.group_name(group)
