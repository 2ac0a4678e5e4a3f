"""How far a run is, from its receipts alone: no task, no data and no torch is loaded."""

from typing import Any

from streamfluence.layout import (
    decision_stage,
    result_stage,
    score_path,
    score_stage,
)
from streamfluence.run.opened import OpenRun
from streamfluence.run.rows import StoredRows, stored_rows
from streamfluence.run.sets import score_names
from streamfluence.run.source import ROWS_SOURCE, source_name


def status(run_path: str) -> dict[str, Any]:
    """Return what is done and what is missing.

    Returns:
        ``complete`` (rows of every set, unless scores of gradients that stream by need none and none
        are there, and all scores asked for so far are there), ``sketch``,
        ``sets`` and ``scores`` with done / of and missing partitions.
    """
    run = OpenRun.open(run_path)
    checkpoints = len(run.checkpoints)
    sketched = sum(bool(run.receipts(decision_stage(c))) for c in range(checkpoints))
    sets = [
        _set(rows)
        for example_set in ["train", *run.query_sets()]
        for rows in stored_rows(run, example_set)
    ]
    scores = [_score(run, label) for label in score_names(run)]
    streamed = any(score["source"] != ROWS_SOURCE for score in scores)
    begun = any(part["done"] for part in sets) or not streamed
    return {
        "run": run_path,
        "fingerprint": run.fingerprint,
        "sketch": {"done": sketched, "of": checkpoints},
        "sets": sets,
        "scores": scores,
        "complete": sketched == checkpoints
        and all(part["done"] == part["of"] for part in [*(sets if begun else ()), *scores]),
    }


def _set(rows: StoredRows) -> dict[str, Any]:
    receipts, wanted = rows.present(), rows.examples.partitions
    return {
        "set": rows.example_set,
        "checkpoint": rows.checkpoint,
        "examples": rows.examples.count,
        "done": len(receipts),
        "of": wanted,
        "missing": sorted(set(range(wanted)) - set(receipts)),
        "bytes": sum(receipt.nbytes for receipt in receipts.values()),
        "non_finite": sum(receipt.facts["non_finite"] for receipt in receipts.values()),
        "seconds": round(sum(receipt.facts["seconds"] for receipt in receipts.values()), 1),
    }


def _score(run: OpenRun, label: str) -> dict[str, Any]:
    spec = run.read_document(score_path(label))
    tasks = len(spec["tasks"])
    missing = run.missing(score_stage(label), tasks)
    merged = bool(run.receipts(result_stage(label)))
    return {
        "name": label,
        "queries": spec["queries"],
        "source": source_name(spec),
        "done": tasks - len(missing) + merged,
        "of": tasks + 1,
        "missing_partitions": spec["missing_partitions"],
    }
