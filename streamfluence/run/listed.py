"""The lists that the readout top_k kept of every query, as a result holds them."""

import numpy as np

from streamfluence.errors import DamageError, InputError
from streamfluence.readouts.base import Arrays
from streamfluence.run.feature import feature_of
from streamfluence.run.finished import Finished
from streamfluence.run.opened import OpenRun
from streamfluence.store import array_names

SIGNS = ("positive", "negative")
FIELDS = ("rows", "scores", "loss", "self_influence")


def known(value: float) -> float | None:
    """Return a number of a list; None for one that the source of the scores does not know."""
    return None if np.isnan(value) else float(value)


def lists(run: OpenRun, scores: Finished) -> dict[str, Arrays]:
    """Return rows, scores, losses and self-influence of both sides, ``(query, rank)``.

    The sides have the feature's names, largest first: ``helps`` and ``hurts`` where scores predict.

    Raises:
        InputError: If the scores were made without top_k.
        DamageError: If they are no such lists of the run's queries and examples.
    """
    if "top_k.positive_rows" not in array_names(scores.receipt):
        raise InputError(
            f"scores {scores.label!r} were made without the readout top_k; add it to score.readouts"
        )
    queries = run.example_set(scores.spec["queries"]).count
    examples = run.train.count
    found = {
        side: {name: run.read(scores.receipt, f"top_k.{sign}_{name}") for name in FIELDS}
        for side, sign in zip(feature_of(run.method).sides, SIGNS, strict=True)
    }
    for arrays in found.values():
        shapes, rows = {array.shape for array in arrays.values()}, arrays["rows"]
        kinds = "".join(arrays[name].dtype.kind for name in FIELDS)
        if len(shapes) > 1 or rows.ndim != 2 or len(rows) != queries or kinds != "ifff":
            raise DamageError(
                f"the lists of scores {scores.label!r} of {run.url} are not of {queries:,} queries; "
                f"score again under another --name"
            )
        if np.any((rows < -1) | (rows >= examples)):
            raise DamageError(
                f"scores {scores.label!r} of {run.url} list rows that the training set does not have; "
                f"score again under another --name"
            )
    return found
