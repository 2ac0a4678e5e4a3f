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
    """

    one: float
    each: list[float]
    mean_of_models: float | None
    interval: tuple[float, float]


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
        each = [self.lds(one) for one in scores]
        first = lds.bootstrap(scores[0], self.truth.masks, self.truth.losses, draws=BOOTSTRAP_DRAWS)
        mean = self.lds(np.mean(np.stack(scores), axis=0)) if len(scores) > 1 else None
        return Figures(float(np.mean(each)), each, mean, (first.low, first.high))

    def lds(self, scores: np.ndarray) -> float:
        """Return the LDS of one matrix of removal effects, ``(example, query)``."""
        return lds.lds(scores, self.truth.masks, self.truth.losses)
