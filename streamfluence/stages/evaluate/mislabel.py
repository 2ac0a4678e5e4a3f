"""Do the stored rankings of a run find examples that are known to be suspicious?

Self-influence is one ranking among several, and the plain loss is often as good
or better once it is averaged over checkpoints, so all are judged side by side.
Streams the stored columns twice; memory grows with the flagged examples only.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from streamfluence.columns import GRAD_NORM, LOSS, MEASURED, SELF_INFLUENCE
from streamfluence.errors import InputError
from streamfluence.evaluation.lists import listed_rows
from streamfluence.evaluation.mislabel import SHARES, Ranking
from streamfluence.run.columns import Columns, columns
from streamfluence.run.feature import feature_of
from streamfluence.run.opened import OpenRun
from streamfluence.run.rows import stored_rows

Rankings = dict[str, Callable[[dict[str, np.ndarray]], np.ndarray]]


def evaluate_mislabel(run_path: str, flags: str, by_id: bool = False) -> dict[str, Any]:
    """Judge every ranking of a run's training examples against flagged ones.

    The gradient norm is that of the features: of the part in the directions kept, in the coordinates
    in which the damping is the same for every weight. Of what is no gradient it is a row norm.

    Args:
        flags: File of flagged examples; see ``listed_rows``.
        by_id: The file lists the examples' own ids.

    Returns:
        ``rankings``: one row a ranking with ``auc`` and the share of flagged examples found among
        the first 1, 2, 5, 10, 20, 30 and 50 % of all; and what was counted. Examples whose rows
        are not finite are in no ranking.

    Raises:
        InputError: If the file cannot be used, or flags nothing or everything.
        IncompleteError: If rows are missing.
    """
    run = OpenRun.open(run_path)
    for of_train in stored_rows(run, "train"):
        of_train.require_complete()
    rows, count = listed_rows(run, flags, by_id), run.train.count
    if len(rows) in (0, count):
        raise InputError(
            f"{flags} flags {len(rows):,} of {count:,} training examples; to judge a ranking, "
            f"some must be flagged and some not"
        )
    rankings = _rankings(run.method.weights, feature_of(run.method).gradients)
    kept: dict[str, list[np.ndarray]] = {name: [] for name in rankings}
    for part, flagged in _parts(run, rows):
        for name, value in rankings.items():
            kept[name].append(value(part.values)[flagged & part.good])
    judged = {name: Ranking(np.concatenate(values)) for name, values in kept.items()}
    ranked = 0
    for part, flagged in _parts(run, rows):
        ranked += int(part.good.sum())
        for name, value in rankings.items():
            judged[name].count(value(part.values)[~flagged & part.good])
    return {
        "examples": count,
        "flagged": len(rows),
        "checkpoints": len(run.checkpoints),
        "not_ranked": count - ranked,
        "rankings": [_row(name, ranking) for name, ranking in judged.items()],
        "chance": "auc 0.5, and as large a share found as is inspected",
    }


def _rankings(weights: Sequence[float], gradients: bool) -> Rankings:
    """Return every ranking as a function of the stored columns, ``(checkpoint, example)`` each."""
    norm = "gradient_norm" if gradients else "row_norm"
    several = len(weights) > 1
    found: Rankings = {
        "self_influence": lambda values: np.tensordot(weights, values[SELF_INFLUENCE], 1),
        "loss": lambda values: values[LOSS][-1],
        "mean_loss": lambda values: values[LOSS].mean(axis=0, dtype=np.float64),
        norm: lambda values: values[GRAD_NORM][-1],
    }
    if several:
        found["self_influence_of_the_last"] = lambda values: values[SELF_INFLUENCE][-1]
        found[f"mean_{norm}"] = lambda values: values[GRAD_NORM].mean(0, dtype=np.float64)
    return found


def _parts(run: OpenRun, rows: np.ndarray) -> Iterator[tuple[Columns, np.ndarray]]:
    """Yield every partition's columns and which of its examples are flagged."""
    for part in columns(run, MEASURED):
        inside = rows[(rows >= part.start) & (rows < part.start + len(part.good))]
        flagged = np.zeros(len(part.good), bool)
        flagged[inside - part.start] = True
        yield part, flagged


def _row(name: str, ranking: Ranking) -> dict[str, Any]:
    detection = ranking.detection()
    found = {f"in_{share:.0%}": value for share, value in zip(SHARES, detection.found, strict=True)}
    return {"ranking": name.replace("_", " "), "auc": detection.auc, **found}
