"""Linear datamodeling score: do summed scores rank what retraining on subsets does?

Pure numpy on arrays of any size; nothing here trains or reads a run. Higher is
better, 1 is a perfect ranking of the subsets for every query.
"""

from dataclasses import dataclass

import numpy as np

from streamfluence.errors import InputError


@dataclass(frozen=True)
class Interval:
    """A mean and its percentile bootstrap interval."""

    mean: float
    low: float
    high: float


def ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks 1..n along the last axis; ties share the mean of their ranks. float64, same shape."""
    values = np.asarray(values, dtype=np.float64)
    order = values.argsort(axis=-1, kind="stable")
    ordered = np.take_along_axis(values, order, -1)
    new_run = np.ones(values.shape, dtype=bool)
    new_run[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    last_of_run = np.ones(values.shape, dtype=bool)
    last_of_run[..., :-1] = new_run[..., 1:]
    position = np.broadcast_to(np.arange(values.shape[-1]), values.shape)
    first = np.maximum.accumulate(np.where(new_run, position, 0), axis=-1)
    n_last = values.shape[-1] - 1
    last = np.minimum.accumulate(np.where(last_of_run, position, n_last)[..., ::-1], axis=-1)[
        ..., ::-1
    ]
    shared = np.empty(values.shape)
    np.put_along_axis(shared, order, (first + last) / 2 + 1, -1)
    return shared


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return correlation along the last axis; 0 where either side is constant."""
    a = a - a.mean(axis=-1, keepdims=True)
    b = b - b.mean(axis=-1, keepdims=True)
    norm = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    found: np.ndarray = np.divide((a * b).sum(-1), norm, out=np.zeros(norm.shape), where=norm > 0)
    return found


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation along the last axis, ties by mean rank; 0 for constants.

    Args:
        a, b: Shapes that broadcast, the last axis equal, e.g. ``(query, subset)``.
    """
    return pearson(ranks(a), ranks(b))


def predicted_effects(scores: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the predicted change of every query's loss when only a subset is kept, ``(subset, query)``.

    A score is the increase of a query's loss when the example is removed, so a
    kept subset is predicted at minus the sum of its members (up to a constant
    that no rank sees).

    Args:
        scores: ``(example, query)``.
        masks: Which examples each subset keeps, bool ``(subset, example)``.
    """
    return -(np.asarray(masks, dtype=np.float64) @ np.asarray(scores, dtype=np.float64))


def per_query(scores: np.ndarray, masks: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Return the score of each query, ``(query,)``: Spearman over subsets of predicted and actual loss.

    Args:
        scores: Removal effects, ``(example, query)``.
        masks: bool ``(subset, example)``.
        losses: Loss of every query after training on every subset, ``(subset, query)``.

    Raises:
        InputError: If shapes disagree, values are not finite or there are fewer than 3 subsets.

    Source:
        Ilyas et al., Datamodels: Predicting Predictions from Training Data, https://arxiv.org/abs/2202.00622;
        Park et al., TRAK: Attributing Model Behavior at Scale, https://arxiv.org/abs/2303.14186.
    """
    scores, masks, losses = np.asarray(scores), np.asarray(masks), np.asarray(losses)
    _check(scores, masks, losses)
    return spearman(predicted_effects(scores, masks).T, losses.T)


def lds(scores: np.ndarray, masks: np.ndarray, losses: np.ndarray) -> float:
    """Return the mean over queries of :func:`per_query`."""
    return float(per_query(scores, masks, losses).mean())


def bootstrap(
    scores: np.ndarray,
    masks: np.ndarray,
    losses: np.ndarray,
    draws: int = 200,
    coverage: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the score with an interval over redrawn subsets and redrawn queries.

    Both are redrawn: a few subsets judge every query, so queries are not independent.
    """
    scores, masks, losses = np.asarray(scores), np.asarray(masks), np.asarray(losses)
    _check(scores, masks, losses)
    return interval(predicted_effects(scores, masks), losses, draws, coverage, seed)


def interval(
    predicted: np.ndarray,
    losses: np.ndarray,
    draws: int = 200,
    coverage: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the score of predicted effects, with the interval of :func:`bootstrap`.

    Args:
        predicted, losses: ``(subset, query)``. With one query only subsets are redrawn.
    """
    predicted, losses = np.asarray(predicted).T, np.asarray(losses).T
    generator = np.random.default_rng(seed)
    n_queries, n_subsets = predicted.shape
    means = np.empty(draws)
    for draw in range(draws):
        queries = generator.integers(n_queries, size=(n_queries, 1))
        subsets = generator.integers(n_subsets, size=(n_subsets,))
        means[draw] = spearman(predicted[queries, subsets], losses[queries, subsets]).mean()
    tail, mean = (1 - coverage) / 2, float(spearman(predicted, losses).mean())
    # Subsets that are drawn twice are tied, which lowers a rank correlation near 1 by more than
    # the width of the interval: .9858 was given .9816 to .9851. The draws tell width, not place.
    low, high = np.quantile(means, [tail, 1 - tail]) + (mean - means.mean())
    return Interval(mean, float(max(low, -1.0)), float(min(high, 1.0)))


def one_against_rest(seed_losses: np.ndarray) -> float:
    """Return how well one retraining predicts the mean of the others, as a score; the noise to beat.

    Args:
        seed_losses: ``(seed, subset, query)``, at least two seeds.
    """
    losses = _seeds(seed_losses)
    total = losses.sum(0)
    found = [spearman(one.T, (total - one).T / (len(losses) - 1)).mean() for one in losses]
    return float(np.mean(found))


def ceiling(seed_losses: np.ndarray) -> float:
    """Return the score a perfect predictor of the expected loss would reach against these seeds.

    The mean of R seeds has reliability ``R r / (1 + (R - 1) r)`` (Spearman-Brown) with r the
    correlation of two single seeds; a perfect predictor correlates with it by the square root.
    That holds for Pearson's r, so rank correlations are taken there and back by the Gaussian
    relation ``r = 2 sin(pi rho / 6)``.

    Args:
        seed_losses: ``(seed, subset, query)``, at least two seeds.
    """
    losses = _seeds(seed_losses)
    count = len(losses)
    pairs = [(i, j) for i in range(count) for j in range(i)]
    single = np.stack([spearman(losses[i].T, losses[j].T) for i, j in pairs]).mean(axis=0)
    single = 2 * np.sin(np.pi * np.clip(single, 0, 1) / 6)
    perfect = np.sqrt(count * single / (1 + (count - 1) * single))
    return float((6 / np.pi * np.arcsin(perfect / 2)).mean())


def _seeds(seed_losses: np.ndarray) -> np.ndarray:
    losses = np.asarray(seed_losses, dtype=np.float64)
    if losses.ndim != 3 or len(losses) < 2:
        raise InputError(
            f"the noise ceiling needs losses (seed, subset, query) of at least 2 seeds, got shape "
            f"{losses.shape}; train every subset with one more seed"
        )
    return losses


def _check(scores: np.ndarray, masks: np.ndarray, losses: np.ndarray) -> None:
    expected = (masks.shape[0], scores.shape[-1])
    if masks.ndim != 2 or scores.shape[0] != masks.shape[1] or losses.shape != expected:
        raise InputError(
            f"scores (example, query) {scores.shape}, masks (subset, example) {masks.shape} and "
            f"losses (subset, query) {losses.shape} do not belong together"
        )
    if len(masks) < 3:
        raise InputError(f"{len(masks)} subsets cannot be ranked; use at least 3, better 100")
    for name, values in (("scores", scores), ("losses", losses)):
        if not np.isfinite(values).all():
            raise InputError(f"{name} hold NaN or infinite values; remove those queries first")
