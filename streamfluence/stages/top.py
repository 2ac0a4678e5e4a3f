"""The examples that help and hurt one query most, with what a person needs to judge them.

Everything shown was stored with the result: neither data nor code of the job is opened.
"""

from typing import Any

import numpy as np

from streamfluence.errors import InputError
from streamfluence.readouts.base import Arrays
from streamfluence.run.finished import Finished, finished, parse_query
from streamfluence.run.listed import known, lists
from streamfluence.run.opened import OpenRun
from streamfluence.run.record import record
from streamfluence.scoring.named import Named, named

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
        positive, negative: Whether to list those of largest and those of smallest score.
        name: Of the scores, when it is not the query set's.

    Returns:
        ``query`` (set, row, id, measurement, group, preview), ``helps`` and ``hurts`` (lists of rank,
        row, id, group, score, loss, self_influence, preview; ``largest`` and ``smallest`` where scores
        are similarities and predict nothing), and ``record``: what the numbers are
        and came from.

    Raises:
        IncompleteError: If the run has no such scores yet, or something they rest on is missing.
        DamageError: If something they rest on is not what it was.
        InputError: If there is no such query.
    """
    run = OpenRun.open(run_path)
    label, row = parse_query(run, query, name)
    scores = finished(run, label)
    found = lists(run, scores)
    count = run.example_set(scores.spec["queries"]).count
    if not 0 <= row < count:
        raise InputError(f"query {row}: {scores.spec['queries']!r} has queries 0 to {count - 1}")
    listed = next(iter(found.values()))["rows"].shape[1]
    if k is None:
        k = min(DEFAULT_K, listed)
    if listed == run.train.count:
        k = min(k, listed)
    if not 1 <= k <= listed:
        raise InputError(
            f"{k} examples were asked for, but scores {label!r} kept {listed} (score.top_k); "
            f"ask for 1 to {listed}"
        )
    examples = named(run, scores.receipt, "train")
    wanted = dict(zip(found, (positive, negative), strict=True))
    sides = {side: _side(found[side], examples, row, k) for side, on in wanted.items() if on}
    return {"query": _query(run, scores, row), **sides, "record": record(run, label, scores)}


def _query(run: OpenRun, scores: Finished, row: int) -> dict[str, Any]:
    queries = named(run, scores.receipt, "queries")
    return {
        "set": scores.spec["queries"],
        "row": row,
        "id": queries.of(row, "id"),
        "measurement": queries.of(row, "loss"),
        "group": queries.of(row, "group"),
        "preview": queries.of(row, "preview"),
    }


def _side(listed: Arrays, examples: Named, query: int, k: int) -> list[dict[str, Any]]:
    """Return one ranked list of a query, as JSON-able rows."""
    fields = {name: array[query, :k] for name, array in listed.items()}
    return [
        {
            "rank": rank + 1,
            "row": int(row),
            "id": examples.of(int(row), "id"),
            "group": examples.of(int(row), "group"),
            "score": float(fields["scores"][rank]),
            **{name: known(fields[name][rank]) for name in ("loss", "self_influence")},
            "preview": examples.of(int(row), "preview"),
        }
        for rank, row in enumerate(fields["rows"])
        if row >= 0 and np.isfinite(fields["scores"][rank])
    ]
