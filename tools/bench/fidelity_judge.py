"""What retraining says about scores: rows of the benchmark's table, from the stored truth of a case."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import fidelity_truth
import numpy as np
import torch
from cases.base import Case

from streamfluence.evaluation import lds

BOOTSTRAP_DRAWS = 100


@dataclass(frozen=True)
class Figures:
    """LDS of one method on one case.

    Attributes:
        one: Mean over the judged nets of the LDS of each net's scores.
        each: Of each net.
        mean_of_models: LDS of the mean of all nets' scores, None for one net.
        interval: Bootstrap interval of the first net's.
        named, later: As ``one``, over the queries that the job names, and over those asked later.
    """

    one: float
    each: list[float]
    mean_of_models: float | None
    interval: tuple[float, float]
    named: float
    later: float


class Judge:
    """The stored truth of a case, and the first ``n_models`` of its nets.

    Args:
        n_models: As many as there are, if None.
    """

    def __init__(self, case: Case, n_models: int | None = None) -> None:
        self.case, self.split = case, case.data()
        self.truth = fidelity_truth.load(case.truth_path)
        self.weights = self.truth.weights[:n_models]

    def setup(self) -> dict[str, Any]:
        """Return what decided the figures, and the noise in the truth."""
        seeds = self.truth.seed_losses
        return {
            "title": self.case.title,
            "weights": self.truth.weights.shape[1],
            "examples": self.split.count,
            "queries": seeds.shape[2],
            "subsets": seeds.shape[1],
            "seeds": seeds.shape[0],
            "recipe": self.truth.recipe,
            "facts": self.truth.facts,
            "noise_ceiling": lds.ceiling(seeds),
            "one_retraining_against_the_rest": lds.one_against_rest(seeds),
            "torch": torch.__version__,
        }

    def figures(self, scores: Sequence[np.ndarray]) -> Figures:
        """Return the figures of the scores ``(example, query)`` of one or more nets."""
        return self.of_effects([self.effects(one) for one in scores])

    def effects(self, scores: np.ndarray) -> np.ndarray:
        """Return what scores predict of every subset, ``(subset, query)``: all that figures rest on."""
        return lds.predicted_effects(scores, self.truth.masks)

    def of_effects(self, effects: Sequence[np.ndarray]) -> Figures:
        """Return the figures of the predictions ``(subset, query)`` of one or more nets."""
        each = np.stack([self._of_each_query(one) for one in effects])
        first = lds.interval(effects[0], self.truth.losses, draws=BOOTSTRAP_DRAWS)
        several = len(effects) > 1
        mean = float(self._of_each_query(np.mean(effects, axis=0)).mean()) if several else None
        named, later = np.split(each, [self.split.n_named], axis=1)
        return Figures(
            one=float(each.mean()),
            each=each.mean(axis=1).tolist(),
            mean_of_models=mean,
            interval=(first.low, first.high),
            named=float(named.mean()),
            later=float(later.mean()),
        )

    def _of_each_query(self, effects: np.ndarray) -> np.ndarray:
        return lds.spearman(effects.T, self.truth.losses.T)

    def lds(self, scores: np.ndarray) -> float:
        """Return the LDS of one matrix of removal effects, ``(example, query)``."""
        return lds.lds(scores, self.truth.masks, self.truth.losses)
