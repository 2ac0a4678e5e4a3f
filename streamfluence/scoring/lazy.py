"""Scores, rows and results as lazy Dask arrays: nothing is computed until asked for."""

from typing import Any

import dask.array as da
from dask.delayed import delayed

from streamfluence.errors import InputError
from streamfluence.run.finished import (
    finished,
    parse_query,
)
from streamfluence.run.opened import OpenRun
from streamfluence.run.rows import row_receipts
from streamfluence.run.sets import (
    named_query_set,
)
from streamfluence.scoring import stored
from streamfluence.scoring.named import PREFIX, named
from streamfluence.scoring.spec import make_spec
from streamfluence.store import Receipt


def lazy_scores(
    run: OpenRun, queries: str | None, damping: float | None, scale: str = "none"
) -> da.Array:
    """Return scores as a lazy Dask array, a block for each partition of rows and tile of queries.

    See ``Run.scores``.
    """
    example_set = named_query_set(run, queries)
    make_spec(run, example_set, {"readouts": {}}, damping, scale, allow_incomplete=False)
    known = (run.url, example_set, damping)
    columns = [
        _lazy(run, tile[1] - tile[0], stored.partition_scores, known, tile, scale)
        for tile in stored.query_tiles(run, example_set)
    ]
    scores: da.Array = da.concatenate(columns, axis=1)
    return scores


def lazy_rows(run: OpenRun, example_set: str, checkpoint: int) -> da.Array:
    """Return rows in stored coordinates as a lazy Dask array, one block a partition; see ``Run.rows``."""
    checkpoints = len(run.checkpoints)
    if not 0 <= checkpoint < checkpoints:
        raise InputError(f"checkpoint {checkpoint}: {run.url} has 0 to {checkpoints - 1}")
    row_receipts(run, example_set, checkpoint)
    width = stored.row_width(run, checkpoint)
    known = (run.url, example_set, checkpoint)
    return _lazy(run, width, stored.partition_rows, known, of=example_set)


def results(run: OpenRun, name: str | None) -> dict[str, Any]:
    """Return what the readouts of finished scores kept, by ``readout.array``; see ``Run.results``."""
    label, _ = parse_query(run, "0", name)
    scores = finished(run, label)
    found: dict[str, Any] = {
        key: run.read(scores.receipt, key)
        for key in run.array_names(scores.receipt)
        if not key.startswith(PREFIX)
    }
    for role in ("train", "queries"):
        examples = named(run, scores.receipt, role)
        found |= {f"{PREFIX}{role}.{key}": array for key, array in examples.columns.items()}
        found[f"{PREFIX}{role}.row"] = examples.rows
    for key in run.array_names(scores.tasks[0]) if scores.tasks else []:
        kind, _, array = key.partition(".")
        if kind == "example":
            found[array] = da.concatenate([_stored_block(run, part, key) for part in scores.tasks])
    return found


def _stored_block(run: OpenRun, receipt: Receipt, key: str) -> da.Array:
    with run.reader(receipt, key) as reader:
        shape, dtype = reader.shape, reader.dtype
    block: da.Array = da.from_delayed(delayed(run.read)(receipt, key), shape=shape, dtype=dtype)
    return block


def _lazy(
    run: OpenRun,
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
        for partition, span in enumerate(run.example_set(of).spans)
    ]
    joined: da.Array = da.concatenate(blocks)
    return joined
