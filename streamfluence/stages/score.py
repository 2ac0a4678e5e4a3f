"""Scores of a query set against every stored row: one pass, read out as asked."""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask.array as da
from dask import delayed

from streamfluence.errors import InputError, StreamfluenceError
from streamfluence.layout import collect_stage
from streamfluence.manifest import Score
from streamfluence.stages import _score_tasks as work
from streamfluence.stages import _stored_rows as stored
from streamfluence.stages._execution import Execution, Progress, Silent, run_all
from streamfluence.stages._finished import (
    Bases,
    finished,
    parse_query,
    read_spec,
    refuse_changed,
    spec_bases,
)
from streamfluence.stages._named import PREFIX, named
from streamfluence.stages._record import warnings
from streamfluence.stages._rests_on import differing
from streamfluence.stages._rows import row_receipts, spans
from streamfluence.stages._sets import (
    named_query_set,
    partition_count,
    pinned_query_sets,
    refuse_missing,
    score_names,
    score_path,
)
from streamfluence.store import Receipt, RunStore
from streamfluence.store.digests import content_digest, document_digest
from streamfluence.store.documents import differences

LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")  # a folder of this name holds the result
DENSE_BYTES = 64 << 20  # scores that one task holds before it writes them
TASK_ROWS = 262_144  # rows a task: large enough to be worth a task, small enough to lose

MEANING = (
    "score = predicted increase of the query's measurement if the example were removed from training; "
    "positive: the example helps the query, negative: it hurts; 1/n included"
)


def score(
    run_path: str,
    queries: list[str] | None = None,
    damping: float | None = None,
    readouts: list[str] | None = None,
    top_k: int | None = None,
    subsets: str | None = None,
    name: str | None = None,
    execution: Execution | None = None,
    progress: Progress | None = None,
    allow_incomplete: bool = False,
) -> dict[str, Any]:
    """Score query sets against the training rows; what is already there is not done again.

    Args:
        queries: Names of query sets; None takes all.
        damping: Another damping than the rows were whitened with; rows are not touched.
        readouts, top_k, subsets: What to keep; when none is given, as these scores were made before.
        name: Of the result; by default the query set's, with the damping when it is another one.
        allow_incomplete: Go on without missing partitions of training rows, and say so in the result.

    Returns:
        ``scores``: facts of each result; ``warnings``: what makes them doubtful, with the fix.

    Raises:
        IncompleteError: If rows are missing.
        InputError: If the name was given to other settings before.
    """
    execution, progress = execution or Execution(), progress or Silent()
    options = Score(
        readouts=tuple(readouts or Score.readouts), top_k=top_k or Score.top_k, subsets=subsets
    )
    given = bool(readouts or top_k or subsets)
    store = RunStore.open(run_path)
    chosen = queries or pinned_query_sets(store)
    if not chosen:
        raise InputError(
            f"{run_path} has no query set; add [queries.NAME] to the job and run it again"
        )
    if name is not None and len(chosen) > 1:
        raise InputError(
            f"--name {name} for {len(chosen)} query sets; score one at a time, by --queries"
        )
    if name is not None and not LABEL.fullmatch(name):
        raise InputError(f"--name {name!r}: use letters, digits, '.', '-' and '_', at most 100")
    done = []
    for example_set in chosen:
        label = name or (example_set if damping is None else f"{example_set}-damping-{damping:g}")
        spec = _spec(store, example_set, options, damping, allow_incomplete)
        if not given and store.has(score_path(label)):
            spec["readouts"] = store.read_document(score_path(label))["readouts"]
        _pin(store, label, spec)
        _execute(store, run_path, label, spec, execution, progress)
        _merge(store, run_path, label)
        done.append({"name": label, **_facts(store, label, spec)})
    missing = sorted({partition for facts in done for partition in facts["missing_partitions"]})
    results = [finished(store, facts["name"]) for facts in done]
    return {"scores": done, "warnings": warnings(store, missing, results)}


def rescore(
    run_path: str,
    labels: list[str],
    execution: Execution | None = None,
    progress: Progress | None = None,
) -> None:
    """Do what is missing of scores that were asked for before, and what no longer rests on what is there."""
    store = RunStore.open(run_path)
    for label in labels:
        spec = read_spec(store, label)
        _discard_stale(store, label, spec)
        _execute(store, run_path, label, spec, execution or Execution(), progress or Silent())
        _discard_stale(store, label, spec)  # parts made on another machine may have other last bits
        _merge(store, run_path, label)


def _discard_stale(store: RunStore, label: str, spec: Mapping[str, Any]) -> None:
    for stage, part in stale(store, label, spec):
        store.discard(stage, part)


def stale(store: RunStore, label: str, spec: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return stage and partition of every part of a score that was made from something else than is there."""
    tasks, count = store.receipts(f"score/{label}"), len(spec["tasks"])
    bases = Bases(store, spec, range(count))
    wrong = [
        (f"score/{label}", task)
        for task, receipt in sorted(tasks.items())
        if task >= count or differing(receipt.facts, bases.of(task))
    ]
    result = store.receipt(f"scores/{label}", 0)
    if result is not None:
        parts = [tasks[task] for task in range(count) if task in tasks]
        found = {"score": document_digest(spec), "tasks": content_digest(parts)}
        if wrong or (len(parts) == count and differing(result.facts, found)):
            wrong.append((f"scores/{label}", 0))
    return wrong


def stale_scores(store: RunStore) -> list[str]:
    """Return the names of scores of which something no longer rests on what is there.

    Scores of which that cannot be said, because something is missing or damaged, are not among them.
    """
    found = []
    for name in score_names(store):
        with suppress(StreamfluenceError):
            found += [name] if stale(store, name, read_spec(store, name)) else []
    return found


def _spec(
    store: RunStore, example_set: str, options: Score, damping: float | None, allow_incomplete: bool
) -> dict[str, Any]:
    """Return everything that decides a result, after checking that its rows are there."""
    named_query_set(store, example_set)
    _check_damping(store, damping)
    for checkpoint in range(len(store.manifest["checkpoints"])):
        row_receipts(store, example_set, checkpoint)
    missing = sorted(
        {
            partition
            for checkpoint in range(len(store.manifest["checkpoints"]))
            for partition in store.missing(
                collect_stage("train", checkpoint), partition_count(store, "train")
            )
        }
    )
    if missing and not allow_incomplete:
        refuse_missing(store, "train", missing)
    facts = store.read_document(f"queries/{example_set}.json")
    present = sorted(set(range(partition_count(store, "train"))) - set(missing))
    size = max(
        1, _task_rows(options, facts["count"]) // store.manifest["train"]["partition_examples"]
    )
    root = Path(store.manifest["root"])
    return {
        "queries": example_set,
        "rests_on": spec_bases(store, example_set),
        "measurement": facts["measurement"],
        "damping": damping,
        "readouts": {
            readout: readout_options(readout, options, root) for readout in options.readouts
        },
        "tasks": [present[i : i + size] for i in range(0, len(present), size)],
        "missing_partitions": missing,
        "meaning": MEANING,
        "unit": f"{facts['measurement']} of one query, per training example",
    }


def _check_damping(store: RunStore, damping: float | None) -> None:
    """Refuse another damping that is no number to damp with, or that nothing would be damped by."""
    if damping is None:
        return
    if not 0 < damping < math.inf:
        raise InputError(f"damping = {damping}; it must be positive and finite")
    if store.manifest["curvature"]["name"] == "identity":
        raise InputError(
            f"{store.url} was made with curvature.name = 'identity', which has no damping to change; "
            "leave --damping out, or make a run with a curvature"
        )


def _task_rows(options: Score, queries: int) -> int:
    """Return how many rows one task scores: fewer when every score of them is kept."""
    if "dense" not in options.readouts:
        return TASK_ROWS
    return min(TASK_ROWS, DENSE_BYTES // (4 * queries))


def readout_options(readout: str, options: Score, root: Path) -> dict[str, Any]:
    """Return the options of one readout among those of a score, in a job of the folder ``root``."""
    if readout == "subset_sum":
        if options.subsets is None:
            raise InputError("the readout subset_sum needs score.subsets: a mask or lists of rows")
        return {"subsets": options.subsets, "sha256": work.file_sha256(root / options.subsets)}
    return {"k": options.top_k} if readout in ("top_k", "self_influence") else {}


def _pin(store: RunStore, label: str, spec: Mapping[str, Any]) -> None:
    """Fix what a result of that name is, once everything in it was seen to be possible."""
    work.build_readouts(spec, Path(store.manifest["root"]))
    if not store.has(score_path(label)):
        store.create_document(score_path(label), dict(spec))
        return
    there = store.read_document(score_path(label))
    if there != spec:
        raise InputError(
            f"scores {label!r} of {store.url} were made with other settings: "
            f"{differences(there, spec, limit=3)}; keep both with `streamfluence score RUN --name NEW`"
        )


def _execute(
    store: RunStore,
    run_path: str,
    label: str,
    spec: Mapping[str, Any],
    execution: Execution,
    progress: Progress,
) -> None:
    missing = store.missing(f"score/{label}", len(spec["tasks"]))
    there = sorted(set(range(len(spec["tasks"]))) - set(missing))
    bases = Bases(store, spec, there)
    for task in there:
        receipt = store.receipt(f"score/{label}", task)
        if receipt is not None:
            refuse_changed(store, label, receipt, bases)
    if missing:
        with execution.open(len(missing), store.manifest["compute"]["threads"]) as executor:
            progress.start(f"score {label}", len(missing), "tasks")
            tasks = [(run_path, execution.resolved_device(), label, task) for task in missing]
            run_all(executor, work.score, tasks, lambda *_: progress.advance(1))
            progress.finish()


def _merge(store: RunStore, run_path: str, label: str) -> None:
    if store.receipt(f"scores/{label}", 0) is None:
        work.merge(run_path, label)
    finished(store, label)


def _facts(store: RunStore, label: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    counts = finished(store, label).receipt.facts
    said = ("queries", "measurement", "damping", "missing_partitions", "unit")
    return {key: spec[key] for key in said} | {key: counts[key] for key in ("examples", "invalid")}


def lazy_scores(run_path: str, queries: str | None, damping: float | None) -> da.Array:
    """Return scores as a lazy Dask array, a block for each partition of rows and tile of queries.

    See ``Run.scores``.
    """
    store = RunStore.open(run_path)
    example_set = named_query_set(store, queries)
    _spec(store, example_set, Score(), damping, allow_incomplete=False)
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
