"""How well a ranking finds flagged examples: AUC and detection curve, over blocks of any number.

Memory holds the values of the flagged examples only. A ranking is judged in two
passes: the first keeps the flagged values, the second counts, for every one of
them, the other examples above it and level with it. Examples of equal value
count as inspected in random order, so both figures are expectations over ties.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True)
class Detection:
    """What one ranking is worth.

    Attributes:
        auc: Probability that a flagged example ranks above one that is not flagged; ties count half.
        found: Share of the flagged examples among the first ``SHARES`` of all, one a share.
    """

    auc: float
    found: tuple[float, ...]


class Ranking:
    """One ranking under judgement, largest value first.

    Args:
        flagged: Values of the flagged examples, shape ``(flagged,)``, any order, finite.
    """

    def __init__(self, flagged: np.ndarray) -> None:
        self._levels, self._here = np.unique(
            np.asarray(flagged, dtype=np.float64), return_counts=True
        )
        # Two places a level: strictly between the levels, and level with one.
        self._between = np.zeros(len(self._levels) + 1, np.int64)
        self._level = np.zeros(len(self._levels), np.int64)

    def count(self, others: np.ndarray) -> None:
        """Count a block of values of examples that are not flagged, shape ``(example,)``."""
        others = np.asarray(others, dtype=np.float64)
        left = np.searchsorted(self._levels, others, side="left")
        equal = np.searchsorted(self._levels, others, side="right") > left
        self._level += np.bincount(left[equal], minlength=len(self._level))
        self._between += np.bincount(left[~equal], minlength=len(self._between))

    def detection(self, shares: Sequence[float] = SHARES) -> Detection:
        """Return the figures; NaN where nothing or everything is flagged."""
        others = int(self._between.sum() + self._level.sum())
        flagged = int(self._here.sum())
        if not others or not flagged:
            return Detection(float("nan"), tuple(float("nan") for _ in shares))
        below = np.cumsum(self._between)[:-1] + np.cumsum(self._level) - self._level
        wins = ((below + self._level / 2) * self._here).sum()
        return Detection(
            auc=float(wins / (others * flagged)),
            found=tuple(self._share_found(round(share * (others + flagged))) for share in shares),
        )

    def _share_found(self, inspected: int) -> float:
        """Return the expected share of flagged examples among the first ``inspected``."""
        tied = self._level + self._here
        # Examples above each level: those of higher levels, flagged or not, and those between.
        above = _sum_after(tied) + np.cumsum(self._between[::-1])[::-1][1:]
        part = np.clip((inspected - above) / tied, 0.0, 1.0)
        return float((part * self._here).sum() / self._here.sum())


def _sum_after(values: np.ndarray) -> np.ndarray:
    """Return for each place the sum of the values after it."""
    after: np.ndarray = np.cumsum(values[::-1])[::-1] - values
    return after
