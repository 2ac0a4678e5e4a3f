"""The examples with the largest influence on their own loss, and how that influence is distributed.

Self-influence is one ranking of suspicious labels among several; the loss is always kept beside it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from streamfluence.readouts._ranking import (
    best_of,
    checked_length,
    first_best,
)
from streamfluence.readouts.base import Arrays, Readout, ScoreBlock

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_FIELDS = {"self_influence": np.float32, "rows": np.int64, "loss": np.float32}
_SUMS = ("sum", "loss_sum", "count", "bins")
# Eight bins an octave from 2**-80 to 2**48, the first also for zero: quantiles within 5 %.
_STEPS, _LOWEST, _HIGHEST = 8, -80, 48
_EDGES = 0.5 * 2.0 ** (np.arange(1, _STEPS) / _STEPS)


class SelfInfluence(Readout):
    """The ``k`` examples of largest self-influence, with sums and quantiles over all examples.

    Args:
        k: Examples in the list.

    The result is ``top_self_influence`` float32, ``top_rows`` int64, ``top_loss`` float32, shape
    ``(k,)``, largest first, ties in the order of rows, padded with NaN and row -1; ``count``
    int64, ``sum``, ``mean``, ``loss_mean`` float64, shape ``(1,)``; ``quantiles`` float64 at the
    levels ``QUANTILES``, from a histogram, within 5 % of the value. Invalid rows count nowhere.
    """

    needs = ("columns", "self_influence")

    def __init__(self, *, k: int = 100) -> None:
        self.k = checked_length(k)

    @classmethod
    def pinned(cls, options: Mapping[str, Any], root: Path, examples: int) -> dict[str, Any]:
        return {**options, "k": min(cls(**options).k, examples)}

    def chunk(self, block: ScoreBlock) -> Arrays:
        rows = np.flatnonzero(block.valid)
        values, loss = block.self_influence[rows], block.loss[rows]
        listed = first_best(values[None], self.k)
        fields = {"self_influence": values, "rows": block.start + rows, "loss": loss}
        nothing = {name: np.empty((1, 0), dtype) for name, dtype in _FIELDS.items()}
        found = {name: field[listed] for name, field in fields.items()}
        return self._best(nothing, found) | {
            "sum": _sum(values),
            "loss_sum": _sum(loss),
            "count": np.array([len(rows)]),
            "bins": np.bincount(_bin(values), minlength=_bin_count()),
        }

    def combine(self, a: Arrays, b: Arrays) -> Arrays:
        lists = ({name: state[f"top_{name}"][None] for name in _FIELDS} for state in (a, b))
        return self._best(*lists) | {name: a[name] + b[name] for name in _SUMS}

    def finalize(self, state: Arrays) -> Arrays:
        count = np.maximum(state["count"], 1)
        return {f"top_{name}": state[f"top_{name}"] for name in _FIELDS} | {
            "count": state["count"],
            "sum": state["sum"],
            "mean": state["sum"] / count,
            "loss_mean": state["loss_sum"] / count,
            "quantiles": _quantiles(state["bins"]),
        }

    def result_bytes(self, n_examples: int, n_queries: int) -> int:
        entry = sum(np.dtype(dtype).itemsize for dtype in _FIELDS.values())
        return self.k * entry + 8 * (len(_SUMS) - 1 + _bin_count())

    def _best(self, a: Arrays, b: Arrays) -> Arrays:
        best = best_of(a, b, "self_influence", 1, self.k)
        return {f"top_{name}": values[0] for name, values in best.items()}


def _sum(values: np.ndarray) -> np.ndarray:
    return np.array([values.sum(dtype=np.float64)])


def _bin_count() -> int:
    return (_HIGHEST - _LOWEST) * _STEPS


def _bin(values: np.ndarray) -> np.ndarray:
    """Return each value's bin; by comparisons, because a logarithm may round differently in a vector."""
    largest = np.finfo(np.float32).max  # an infinite value has no exponent
    mantissa, exponent = np.frexp(np.minimum(values, largest).astype(np.float64))
    place = (exponent - _LOWEST) * _STEPS + np.searchsorted(_EDGES, mantissa, side="right")
    return np.where(values > 0, np.clip(place, 0, _bin_count() - 1), 0)


def _quantiles(bins: np.ndarray) -> np.ndarray:
    """Return the geometric middle of the bin each quantile falls in; NaN when there are no values."""
    if bins.sum() == 0:
        return np.full(len(QUANTILES), np.nan)
    rank = np.ceil(np.array(QUANTILES) * bins.sum()).clip(1)
    place = np.searchsorted(np.cumsum(bins), rank)
    middle = 2.0 ** ((place + 0.5) / _STEPS + _LOWEST - 1)
    return np.where(place == 0, 0.0, middle)
