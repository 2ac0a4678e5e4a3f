"""How unusual each training row is, whatever the queries: its norms, and how soon a forest isolates it.

The rows of all checkpoints count side by side, as one long row, whatever the checkpoints' weights.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamfluence.errors import InputError
from streamfluence.readouts import _forest
from streamfluence.readouts._ranking import best_of, checked_length, first_best
from streamfluence.readouts.base import Arrays, Readout, Sample, ScoreBlock

_MEASURES = ("isolation", "l1", "l2")
_FIELDS = {"values": np.float32, "rows": np.int64, "loss": np.float32}
_FEWEST = 2  # rows that a row can be told from
_MOST_TREES = 10_000  # 140 MB of them
_MOST_SAMPLE = 1 << 20  # of 1,024 coordinates: 4 GiB
_TILE_ROWS = 512  # float64 of 1,024 coordinates: 4 MiB


class Outliers(Readout):
    """The ``k`` most unusual examples by each of three measures of their stored rows.

    Args:
        k: Examples in each list.
        trees: Of the forest.
        sample: Rows that the forest is grown from at most, drawn over the whole training set; each
            tree sees 256 of them.

    The measures: ``l1`` and ``l2``, the norms of the decoded whitened row, and ``isolation``, the
    isolation forest's score, above 0 to 1, about 0.5 and less for usual rows. Stored with each
    partition: each of them float32, shape ``(example,)``, NaN for invalid rows. The result, and
    every state, has of each measure ``..._values`` float32, ``..._rows`` int64 and ``..._loss``
    float32, shape ``(k,)``, largest first, ties in the order of rows, padded with NaN and row -1.
    Needs scikit-learn to grow the forest: ``pip install 'streamfluence[outliers]'``.

    Raises:
        InputError: If scikit-learn is missing, or the sample has fewer than two good rows.

    Source:
        Liu, Ting and Zhou, Isolation Forest, https://doi.org/10.1109/ICDM.2008.17.
    """

    needs = ("rows", "columns")

    def __init__(self, *, k: int = 100, trees: int = 100, sample: int = 4096) -> None:
        self.k = checked_length(k)
        bounds = (("trees", trees, 1, _MOST_TREES), ("sample", sample, _FEWEST, _MOST_SAMPLE))
        for name, value, least, most in bounds:
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise InputError(
                    f"{name} must be a whole number, {least} to {most:,}, got {value!r}"
                )
        self.trees, self.sample_examples = trees, sample
        self._forest: Arrays = {}
        self._last: tuple[ScoreBlock | None, Arrays] = (None, {})

    @classmethod
    def pinned(cls, options: Mapping[str, Any], root: Path, examples: int) -> dict[str, Any]:
        _forest.refuse_without_package()
        return {**options, "k": min(cls(**options).k, examples)}

    def prepare(self, sample: Sample) -> Arrays:
        if len(sample.examples) < _FEWEST:
            raise InputError(
                f"the readout 'outliers' compares rows with those of a sample, which has "
                f"{len(sample.examples)} finite rows; raise its option sample, or leave it out"
            )
        return _forest.grown(_side_by_side(sample.rows), self.trees, sample.seed)

    def load(self, prepared: Arrays) -> None:
        self._forest = _forest.checked(prepared)

    def chunk(self, block: ScoreBlock) -> Arrays:
        measured, rows = self._measured(block), np.flatnonzero(block.valid)
        nothing = {name: np.empty((1, 0), dtype) for name, dtype in _FIELDS.items()}
        state: Arrays = {}
        for measure in _MEASURES:
            values = measured[measure][rows]
            listed = first_best(values[None], self.k)
            fields = {"values": values, "rows": block.start + rows, "loss": block.loss[rows]}
            found = {name: field[listed] for name, field in fields.items()}
            state |= self._best(measure, nothing, found)
        return state

    def combine(self, a: Arrays, b: Arrays) -> Arrays:
        state: Arrays = {}
        for measure in _MEASURES:
            lists = ({n: each[f"{measure}_{n}"][None] for n in _FIELDS} for each in (a, b))
            state |= self._best(measure, *lists)
        return state

    def per_example(self, block: ScoreBlock) -> Arrays:
        measured = self._measured(block)
        return {
            name: np.where(block.valid, values, np.float32(np.nan))
            for name, values in measured.items()
        }

    def result_bytes(self, n_examples: int, n_queries: int) -> int:
        entry = sum(np.dtype(dtype).itemsize for dtype in _FIELDS.values())
        return len(_MEASURES) * (self.k * entry + 4 * n_examples)

    def prepared_bytes(self) -> int:
        node = 3 * 4 + 2 * 8
        return self.trees * 2 * _forest.MOST_ROWS * node + 8

    def _measured(self, block: ScoreBlock) -> Arrays:
        """Return the measures of a block; kept, because it is asked for state and for values."""
        if self._last[0] is not block:
            rows = _side_by_side(block.rows)
            norms = _norms(rows)
            values = {"isolation": _forest.isolation(self._forest, rows), **norms}
            self._last = (block, {name: values[name].astype(np.float32) for name in _MEASURES})
        return self._last[1]

    def _best(self, measure: str, a: Arrays, b: Arrays) -> Arrays:
        best = best_of(a, b, "values", 1, self.k)
        return {f"{measure}_{name}": values[0] for name, values in best.items()}


def _side_by_side(rows: Sequence[np.ndarray] | None) -> np.ndarray:
    assert rows, "needs rows"
    return rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1)


def _norms(rows: np.ndarray) -> Arrays:
    """Return L1 and L2 norms, float64, shape ``(example,)``."""
    found = {"l1": np.empty(len(rows)), "l2": np.empty(len(rows))}
    for low in range(0, len(rows), _TILE_ROWS):
        tile = np.abs(rows[low : low + _TILE_ROWS].astype(np.float64))
        # Along contiguous rows without a cast, so that no bit depends on a row's neighbours.
        found["l1"][low : low + _TILE_ROWS] = tile.sum(axis=1)
        found["l2"][low : low + _TILE_ROWS] = np.sqrt(np.square(tile).sum(axis=1))
    return found
