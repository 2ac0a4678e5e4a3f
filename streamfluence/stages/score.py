"""Scores of a query set against every stored row: one pass, read out as asked."""

import re
from collections.abc import Sequence
from typing import Any

from streamfluence.errors import InputError
from streamfluence.execution import Execution, Progress, Silent
from streamfluence.run.finished import (
    Finished,
)
from streamfluence.run.opened import OpenRun
from streamfluence.run.record import warnings
from streamfluence.run.sets import (
    NO_QUERIES,
    pinned_query_sets,
)
from streamfluence.run.source import source_name
from streamfluence.scoring.asked import Asked
from streamfluence.scoring.score import score_set

LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")  # a folder of this name holds the result


def score(
    run_path: str,
    queries: list[str] | None = None,
    damping: float | None = None,
    asked: Asked = Asked(),
    name: str | None = None,
    execution: Execution | None = None,
    progress: Progress | None = None,
    allow_incomplete: bool = False,
) -> dict[str, Any]:
    """Score query sets against the training rows; what is already there is not done again.

    Args:
        queries: Names of query sets; None takes all, or where there are none reads out what needs no
            scores, under the name ``train``.
        damping: Another damping than the rows were whitened with; rows are not touched.
        asked: What to keep, and by what to multiply; where nothing is asked, as these scores were before.
        name: Of the result; by default the query set's, with damping and scale where they are given.
        allow_incomplete: Go on without missing partitions of training rows, and say so in the result.

    Returns:
        ``scores``: facts of each result; ``warnings``: what makes them doubtful, with the fix.

    Raises:
        IncompleteError: If rows are missing.
        InputError: If the name was given to other settings before.
    """
    execution, progress = execution or Execution(), progress or Silent()
    run = OpenRun.open(run_path)
    chosen = queries or pinned_query_sets(run) or [NO_QUERIES]
    if name is not None and len(chosen) > 1:
        raise InputError(
            f"--name {name} for {len(chosen)} query sets; score one at a time, by --queries"
        )
    if name is not None and not LABEL.fullmatch(name):
        raise InputError(f"--name {name!r}: use letters, digits, '.', '-' and '_', at most 100")
    results = [
        score_set(run, each, asked, damping, name, execution, progress, allow_incomplete)
        for each in chosen
    ]
    return scored(run, results)


def scored(run: OpenRun, results: Sequence[Finished]) -> dict[str, Any]:
    """Return what ``score`` does of finished scores."""
    missing = sorted({part for one in results for part in one.spec["missing_partitions"]})
    return {
        "scores": [_facts(one) for one in results],
        "warnings": warnings(run, missing, results),
    }


def _facts(scores: Finished) -> dict[str, Any]:
    said = ("queries", "measurement", "damping", "scale", "missing_partitions", "unit")
    counts = {key: scores.receipt.facts[key] for key in ("examples", "invalid")}
    source = {"source": source_name(scores.spec)}
    return {"name": scores.label, **source, **{key: scores.spec[key] for key in said}, **counts}
