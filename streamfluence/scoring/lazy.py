"""Scores, rows and results as lazy Dask arrays: nothing is computed until asked for."""

from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import delayed

from streamfluence.errors import InputError
from streamfluence.run.decision import load_codec
from streamfluence.run.finished import finished, parse_query
from streamfluence.run.opened import OpenRun
from streamfluence.run.rows import StoredRows
from streamfluence.run.sets import named_query_set
from streamfluence.scoring.named import PREFIX, named
from streamfluence.scoring.queries import Queries
from streamfluence.scoring.spec import make_spec
from streamfluence.scoring.stored import decoded_rows
from streamfluence.store import Receipt


def lazy_scores(
    run: OpenRun, queries: str | None, damping: float | None, scale: str = "none"
) -> da.Array:
    """Return scores as a lazy Dask array, a block for each partition of rows and tile of queries.

    See ``Run.scores``.
    """
    example_set = named_query_set(run, queries)
    make_spec(run, example_set, {"readouts": {}}, damping, scale, allow_incomplete=False)
    queries_ = Queries(run, example_set, damping, scale)
    known = (run.url, example_set, damping, scale)
    columns = [
        _lazy(run, tile[1] - tile[0], partition_scores, known, tile) for tile in queries_.tiles()
    ]
    scores: da.Array = da.concatenate(columns, axis=1)
    return scores


def lazy_rows(run: OpenRun, example_set: str, checkpoint: int) -> da.Array:
    """Return rows in stored coordinates as a lazy Dask array, one block a partition; see ``Run.rows``."""
    checkpoints = len(run.checkpoints)
    if not 0 <= checkpoint < checkpoints:
        raise InputError(f"checkpoint {checkpoint}: {run.url} has 0 to {checkpoints - 1}")
    StoredRows(run, example_set, checkpoint).receipts()
    width = load_codec(run, checkpoint)[0].stored
    known = (run.url, example_set, checkpoint)
    return _lazy(run, width, partition_rows, known, of=example_set)


def partition_scores(
    run_path: str,
    example_set: str,
    damping: float | None,
    scale: str,
    partition: int,
    tile: tuple[int, int],
) -> np.ndarray:
    """Return the scores of one partition and tile of queries, as a task of Dask asks for them."""
    return Queries(OpenRun.open(run_path), example_set, damping, scale).scores(partition, tile)


def partition_rows(run_path: str, example_set: str, checkpoint: int, partition: int) -> np.ndarray:
    """Return the rows of one partition, as a task of Dask asks for them; see ``decoded_rows``."""
    return decoded_rows(StoredRows(OpenRun.open(run_path), example_set, checkpoint), partition)


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
