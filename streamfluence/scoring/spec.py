"""What scores are of and how they are made: pinned under their name, read by every work unit."""

import math
from collections.abc import Mapping
from typing import Any

from streamfluence.columns import MEASURED
from streamfluence.errors import InputError
from streamfluence.layout import score_path
from streamfluence.registry import member
from streamfluence.run.feature import feature_of, meaning_of
from streamfluence.run.finished import spec_bases
from streamfluence.run.opened import OpenRun
from streamfluence.run.prepared import PREPARED
from streamfluence.run.readouts import needed, open_readouts, pin_readouts
from streamfluence.run.rows import StoredRows, stored_rows
from streamfluence.run.sets import NO_QUERIES, named_query_set, query_count
from streamfluence.run.source import of_rows
from streamfluence.scoring.source import refuse_unfit, source_member
from streamfluence.store.documents import differences

DENSE_BYTES = 64 << 20  # scores that one task holds before it writes them


TASK_ROWS = 262_144  # rows a task: large enough to be worth a task, small enough to lose


def make_spec(
    run: OpenRun,
    example_set: str,
    pinned: Mapping[str, Any],
    damping: float | None,
    scale: str,
    allow_incomplete: bool,
) -> dict[str, Any]:
    """Return everything that decides a result, after checking that its rows are there.

    Args:
        example_set: Of the queries; ``NO_QUERIES`` where no readout needs scores.
        pinned: What is read out, see ``pinned_readouts``, and by which source, see ``pinned_source``.
    """
    _check_damping(run, damping)
    by = member("scales", scale)()
    _check_scale(run, scale, damping)
    if example_set == NO_QUERIES:
        _refuse_scores(run, pinned, damping)
    else:
        named_query_set(run, example_set)
    refuse_unfit(run, example_set, pinned, scale, damping)
    missing = _missing(run, example_set) if of_rows(pinned) else []
    if missing and not allow_incomplete:
        StoredRows(run, "train", 0).refuse_missing(missing)
    measurement, queries = run.example_set(example_set).measurement, query_count(run, example_set)
    present = sorted(set(range(run.train.partitions)) - set(missing))
    # Where every example is run again one partition is work enough.
    rows = _task_rows(pinned["readouts"], queries) if of_rows(pinned) else 1
    size = max(1, rows // run.train.partition_examples)
    meaning, unit = meaning_of(run.method, measurement)
    return {
        "queries": example_set,
        "rests_on": spec_bases(run, example_set),
        "measurement": measurement,
        "damping": damping,
        "scale": scale,
        **pinned,
        "tasks": [present[i : i + size] for i in range(0, len(present), size)],
        "missing_partitions": missing,
        "meaning": by.meaning(source_member(pinned).meaning(meaning)),
        "unit": by.unit(unit),
    }


def _missing(run: OpenRun, example_set: str) -> list[int]:
    """Return the partitions without training rows; refuses missing query rows."""
    for queries in stored_rows(run, example_set) if example_set != NO_QUERIES else ():
        queries.receipts()
    return sorted({part for rows in stored_rows(run, "train") for part in rows.missing()})


def _refuse_scores(run: OpenRun, pinned: Mapping[str, Any], damping: float | None) -> None:
    """Refuse to read out scores, or to damp them otherwise, where there is no query."""
    for name, readout in open_readouts(pinned["readouts"], run.place.root).items():
        if "scores" in needed([readout]):
            raise InputError(
                f"{run.url} has no query set, whose scores the readout {name!r} needs; add [queries.NAME] "
                "to the job and run it again"
            )
    if damping is not None:
        raise InputError(f"damping = {damping} is of queries, and none are scored; leave it out")


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


def _check_scale(run: OpenRun, name: str, damping: float | None) -> None:
    """Refuse a scale by norms that the stored ones are not."""
    if name == "none":
        return
    unknown = sorted(set(member("scales", name)().columns) - set(MEASURED))
    if unknown:
        raise InputError(
            f"the scale {name!r} looks at {', '.join(unknown)}, which is not stored of an example; there are "
            f"{', '.join(MEASURED)}"
        )
    if damping is not None:
        raise InputError(
            f"the scale {name!r} is made of what was stored with rows, under the damping that they were "
            "whitened with, so another damping has none; leave --damping or --scale out, or make a run with "
            "that damping"
        )
    if feature_of(run.method).centred:
        raise InputError(
            f"the scale {name!r} is made of stored norms, which are not of centred rows; leave --scale "
            "out, or make a run whose feature is not centred"
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
    return min(TASK_ROWS, DENSE_BYTES // (4 * max(queries, 1)))


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
