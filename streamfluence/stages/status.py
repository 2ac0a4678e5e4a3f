"""How far a run is, from its receipts alone: no task, no data and no torch is loaded."""

from typing import Any

from streamfluence.layout import collect_stage
from streamfluence.run.sets import partition_count, query_sets, score_names, set_facts
from streamfluence.store import RunStore


def status(run_path: str) -> dict[str, Any]:
    """Return what is done and what is missing.

    Returns:
        ``complete`` (rows of every set and all scores asked for so far are there), ``sketch``,
        ``sets`` and ``scores`` with done / of and missing partitions.
    """
    store = RunStore.open(run_path)
    checkpoints = len(store.manifest["checkpoints"])
    sketched = sum(bool(store.receipts(f"sketch/{c}/plan")) for c in range(checkpoints))
    sets = [
        _set(store, example_set, checkpoint)
        for example_set in ["train", *query_sets(store)]
        for checkpoint in range(checkpoints)
    ]
    scores = [_score(store, label) for label in score_names(store)]
    return {
        "run": run_path,
        "fingerprint": store.fingerprint,
        "sketch": {"done": sketched, "of": checkpoints},
        "sets": sets,
        "scores": scores,
        "complete": sketched == checkpoints
        and all(part["done"] == part["of"] for part in [*sets, *scores]),
    }


def _set(store: RunStore, example_set: str, checkpoint: int) -> dict[str, Any]:
    receipts = store.receipts(collect_stage(example_set, checkpoint))
    wanted = partition_count(store, example_set)
    return {
        "set": example_set,
        "checkpoint": checkpoint,
        "examples": set_facts(store, example_set)["count"],
        "done": len(receipts),
        "of": wanted,
        "missing": sorted(set(range(wanted)) - set(receipts)),
        "bytes": sum(receipt.nbytes for receipt in receipts.values()),
        "non_finite": sum(receipt.facts["non_finite"] for receipt in receipts.values()),
        "seconds": round(sum(receipt.facts["seconds"] for receipt in receipts.values()), 1),
    }


def _score(store: RunStore, label: str) -> dict[str, Any]:
    spec = store.read_document(f"scores/{label}/score.json")
    tasks = len(spec["tasks"])
    missing = store.missing(f"score/{label}", tasks)
    merged = bool(store.receipts(f"scores/{label}"))
    return {
        "name": label,
        "queries": spec["queries"],
        "done": tasks - len(missing) + merged,
        "of": tasks + 1,
        "missing_partitions": spec["missing_partitions"],
    }
