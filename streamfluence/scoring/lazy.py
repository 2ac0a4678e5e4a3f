"""Scores, rows and results as lazy Dask arrays: nothing is computed until asked for."""

from typing import Any

import dask.array as da
from dask import delayed

from streamfluence.errors import InputError
from streamfluence.job import Score
from streamfluence.run.finished import (
    finished,
    parse_query,
)
from streamfluence.run.rows import row_receipts, spans
from streamfluence.run.sets import (
    named_query_set,
)
from streamfluence.scoring import stored
from streamfluence.scoring.named import PREFIX, named
from streamfluence.scoring.spec import make_spec
from streamfluence.store import Receipt, RunStore


def lazy_scores(run_path: str, queries: str | None, damping: float | None) -> da.Array:
    """Return scores as a lazy Dask array, a block for each partition of rows and tile of queries.

    See ``Run.scores``.
    """
    store = RunStore.open(run_path)
    example_set = named_query_set(store, queries)
    make_spec(store, example_set, Score(), damping, allow_incomplete=False)
    known = (run_path, example_set, damping)
    columns = [
        _lazy(store, tile[1] - tile[0], stored.partition_scores, known, tile)
        for tile in stored.query_tiles(store, example_set)
    ]
    return da.concatenate(columns, axis=1)


def lazy_rows(run_path: str, example_set: str, checkpoint: int) -> da.Array:
    """Return rows in stored coordinates as a lazy Dask array, one block a partition; see ``Run.rows``."""
    store = RunStore.open(run_path)
    checkpoints = len(store.manifest["checkpoints"])
    if not 0 <= checkpoint < checkpoints:
        raise InputError(f"checkpoint {checkpoint}: {store.url} has 0 to {checkpoints - 1}")
    row_receipts(store, example_set, checkpoint)
    width = stored.row_width(store, checkpoint)
    known = (run_path, example_set, checkpoint)
    return _lazy(store, width, stored.partition_rows, known, of=example_set)


def results(run_path: str, name: str | None) -> dict[str, Any]:
    """Return what the readouts of finished scores kept, by ``readout.array``; see ``Run.results``."""
    store = RunStore.open(run_path)
    label, _ = parse_query(store, "0", name)
    scores = finished(store, label)
    found: dict[str, Any] = {
        key: store.read(scores.receipt, key)
        for key in store.array_names(scores.receipt)
        if not key.startswith(PREFIX)
    }
    for role in ("train", "queries"):
        examples = named(store, scores.receipt, role)
        found |= {f"{PREFIX}{role}.{key}": array for key, array in examples.columns.items()}
        found[f"{PREFIX}{role}.row"] = examples.rows
    for key in store.array_names(scores.tasks[0]) if scores.tasks else []:
        kind, _, array = key.partition(".")
        if kind == "example":
            found[array] = da.concatenate(
                [_stored_block(store, part, key) for part in scores.tasks]
            )
    return found


def _stored_block(store: RunStore, receipt: Receipt, key: str) -> da.Array:
    with store.reader(receipt, key) as reader:
        shape, dtype = reader.shape, reader.dtype
    return da.from_delayed(delayed(store.read)(receipt, key), shape=shape, dtype=dtype)


def _lazy(
    store: RunStore,
    width: int,
    function: Any,
    known: tuple[Any, ...],
    *last: Any,
    of: str = "train",
) -> da.Array:
    blocks = [
        da.from_delayed(
            delayed(function)(*known, partition, *last), shape=(len(span), width), dtype="float32"
        )
        for partition, span in enumerate(spans(store, of))
    ]
    return da.concatenate(blocks)
