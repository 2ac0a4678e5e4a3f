"""What scores are of and how they are made: pinned under their name, read by every work unit."""

import math
from collections.abc import Mapping
from typing import Any

from streamfluence.errors import InputError
from streamfluence.layout import collect_stage, queries_path, score_path
from streamfluence.run.finished import (
    spec_bases,
)
from streamfluence.run.opened import OpenRun
from streamfluence.run.prepared import PREPARED
from streamfluence.run.readouts import open_readouts, pin_readouts
from streamfluence.run.rows import row_receipts
from streamfluence.run.sets import named_query_set, refuse_missing
from streamfluence.store.documents import differences

DENSE_BYTES = 64 << 20  # scores that one task holds before it writes them


TASK_ROWS = 262_144  # rows a task: large enough to be worth a task, small enough to lose


MEANING = (
    "score = predicted increase of the query's measurement if the example were removed from training; "
    "positive: the example helps the query, negative: it hurts; 1/n included"
)


def make_spec(
    run: OpenRun,
    example_set: str,
    asked: Mapping[str, Mapping[str, Any]],
    damping: float | None,
    allow_incomplete: bool,
) -> dict[str, Any]:
    """Return everything that decides a result, after checking that its rows are there.

    Args:
        asked: Readout name to options.
    """
    named_query_set(run, example_set)
    _check_damping(run, damping)
    for checkpoint in run.checkpoints:
        row_receipts(run, example_set, checkpoint)
    missing = sorted(
        {
            partition
            for checkpoint in run.checkpoints
            for partition in run.missing(collect_stage("train", checkpoint), run.train.partitions)
        }
    )
    if missing and not allow_incomplete:
        refuse_missing(run, "train", missing)
    facts = run.read_document(queries_path(example_set))
    present = sorted(set(range(run.train.partitions)) - set(missing))
    size = max(1, _task_rows(asked, facts["count"]) // run.train.partition_examples)
    return {
        "queries": example_set,
        "rests_on": spec_bases(run, example_set),
        "measurement": facts["measurement"],
        "damping": damping,
        **pinned_readouts(run, asked),
        "tasks": [present[i : i + size] for i in range(0, len(present), size)],
        "missing_partitions": missing,
        "meaning": MEANING,
        "unit": f"{facts['measurement']} of one query, per training example",
    }


def _check_damping(run: OpenRun, damping: float | None) -> None:
    """Refuse another damping that is no number to damp with, or that nothing would be damped by."""
    if damping is None:
        return
    if not 0 < damping < math.inf:
        raise InputError(f"damping = {damping}; it must be positive and finite")
    if run.method.curvature.name == "identity":
        raise InputError(
            f"{run.url} was made with curvature.name = 'identity', which has no damping to change; "
            "leave --damping out, or make a run with a curvature"
        )


def pinned_readouts(run: OpenRun, asked: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the part of a document that says what is read out, and what is prepared for it if anything."""
    found: dict[str, Any] = {"readouts": pin_readouts(asked, run.place.root, run.train.count)}
    opened = open_readouts(found["readouts"], run.place.root)
    names = [name for name, readout in opened.items() if readout.sample_examples]
    return {**found, PREPARED: names} if names else found


def _task_rows(readouts: Mapping[str, Any], queries: int) -> int:
    """Return how many rows one task scores: fewer when every score of them is kept."""
    if "dense" not in readouts:
        return TASK_ROWS
    return min(TASK_ROWS, DENSE_BYTES // (4 * queries))


def pin(run: OpenRun, label: str, spec: Mapping[str, Any]) -> None:
    """Fix what a result of that name is, once everything in it was seen to be possible."""
    open_readouts(spec["readouts"], run.place.root)
    if not run.has(score_path(label)):
        run.create_document(score_path(label), dict(spec))
        return
    there = run.read_document(score_path(label))
    if there != spec:
        raise InputError(
            f"scores {label!r} of {run.url} were made with other settings: "
            f"{differences(there, spec, limit=3)}; keep both with `streamfluence score RUN --name NEW`"
        )
