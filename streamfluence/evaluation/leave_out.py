"""Leave-out: do scores predict what training without an example does? Pure numpy.

A trainer that takes the mean over the examples it is given moves every query by one more
constant when it loses an example: the others weigh more. No score knows that constant,
and no comparison within one query sees it; across queries it is taken out by centring.
"""

from typing import Any

import numpy as np

from streamfluence.evaluation.lds import one_against_rest, pearson, spearman

_EXACT_OUTPUTS = {"Gaussian": 1, "Bernoulli": 1, "Categorical": 2}


def judge(predicted: np.ndarray, actual: np.ndarray) -> dict[str, Any]:
    """Return how well predicted changes agree with the changes that were trained.

    Args:
        predicted: Sum of the scores of each group of left-out examples, ``(group, query)``.
        actual: Measurement without the group minus measurement with all, ``(seed, group, query)``.

    Returns:
        Pearson's and Spearman's correlation and the slope (actual per predicted, 1 is calibrated),
        ``within_queries`` as the mean over queries, over all pairs ``across_queries`` and over
        pairs ``centred`` within their query; each None where undefined. Noise: the mean standard
        error of an actual change over its spread, and how well one seed ranks the others.
    """
    mean = actual.mean(axis=0)
    found: dict[str, Any] = {
        "within_queries": _within(predicted, mean),
        "across_queries": agreement_with_changes(predicted.ravel(), mean.ravel()),
        "centred": agreement_with_changes(_centred(predicted).ravel(), _centred(mean).ravel()),
        "constant_queries": int(np.count_nonzero(np.ptp(mean, axis=0) == 0))
        if len(mean) > 1
        else 0,
        "noise_over_spread": None,
        "one_seed_against_rest": None,
    }
    if len(actual) > 1:
        error, spread = standard_error(actual), _centred(mean).std()
        found["noise_over_spread"] = float(np.sqrt((error**2).mean()) / spread) if spread else None
        if len(mean) >= 3:
            found["one_seed_against_rest"] = one_against_rest(actual)
    return found


def agreement_with_changes(predicted: np.ndarray, actual: np.ndarray) -> dict[str, float] | None:
    """Return Pearson, Spearman and slope of two vectors; None for fewer than 3 or a constant."""
    if len(predicted) < 3 or np.ptp(predicted) == 0 or np.ptp(actual) == 0:
        return None
    around = predicted - predicted.mean()
    return {
        "pearson": float(pearson(predicted, actual)),
        "spearman": float(spearman(predicted, actual)),
        "slope": float(around @ (actual - actual.mean()) / (around @ around)),
    }


def standard_error(actual: np.ndarray) -> np.ndarray:
    """Return the standard error of the mean over seeds, ``(group, query)`` of ``(seed, group, query)``."""
    error: np.ndarray = actual.std(axis=0, ddof=1) / np.sqrt(len(actual))
    return error


def leverage(
    self_influence: np.ndarray, loss: np.ndarray, likelihood: str, outputs: int
) -> np.ndarray | None:
    """Return the leverage of examples from numbers that every row has; None where there is no formula.

    The score of an example over one minus its leverage is one Newton step, and for ridge
    regression the exact change. Leverage is ``h = J M J^T S / n``, self-influence
    ``s = r^T J M J^T r / n`` with r the gradient in the outputs, so along r
    ``h = s / (r^T S^-1 r)``: ``s / (2 loss)`` for a Gaussian, and ``s p / (1 - p)`` with
    ``p = exp(-loss)`` for the others. Exact with one output (two classes), else along r only.

    Args:
        self_influence: In the unit of scores, 1/n included, ``(example,)``.
        loss: Of one position an example, ``(example,)``.
        likelihood: Name of its class.
        outputs: Numbers the model puts out for one example.
    """
    if likelihood not in _EXACT_OUTPUTS or (likelihood == "Bernoulli" and outputs > 1):
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        size = 2 * loss if likelihood == "Gaussian" else np.expm1(loss)
        found = self_influence / size
    return np.where(self_influence > 0, np.clip(found, 0, 0.99), 0.0)


def _within(predicted: np.ndarray, actual: np.ndarray) -> dict[str, float] | None:
    """Return the means over queries of their agreements."""
    found = [agreement_with_changes(p, a) for p, a in zip(predicted.T, actual.T, strict=True)]
    defined = [each for each in found if each is not None]
    if not defined:
        return None
    return {key: float(np.mean([each[key] for each in defined])) for key in defined[0]}


def _centred(values: np.ndarray) -> np.ndarray:
    """Return ``(group, query)`` minus the mean over groups."""
    centred: np.ndarray = values - values.mean(axis=0)
    return centred
