"""Do scores bring up the training examples that are known to matter for a query?

Scores come in blocks of examples and are forgotten: kept are the best few of
every query, and the best relevant one. Rank 1 is the largest score. Recall@k
takes equal scores in the order they came; the rank of the first relevant
example counts half of those level with it.
"""

import numpy as np


class FirstPass:
    """What one pass over the scores finds of every query.

    Args:
        n_queries: Number of queries.
        k: Length of the longest list that recall is asked for.

    Attributes:
        best: Largest score of a relevant example, shape ``(query,)``; -inf when there is none.
        relevant: Number of relevant examples, shape ``(query,)``.
    """

    def __init__(self, n_queries: int, k: int) -> None:
        self._k = k
        self._scores = np.empty((n_queries, 0))
        self._hits = np.empty((n_queries, 0), bool)
        self.best = np.full(n_queries, -np.inf)
        self.relevant = np.zeros(n_queries, np.int64)

    def add(self, scores: np.ndarray, relevant: np.ndarray) -> None:
        """Add a block: scores and whether an example is relevant, both ``(query, example)``.

        An example that cannot be ranked has the score -inf.
        """
        self.relevant += relevant.sum(axis=1)
        self.best = np.maximum(
            self.best, np.where(relevant, scores, -np.inf).max(axis=1, initial=-np.inf)
        )
        scores = np.concatenate([self._scores, scores], axis=1)
        hits = np.concatenate([self._hits, relevant], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self._k]
        self._scores = np.take_along_axis(scores, order, 1)
        self._hits = np.take_along_axis(hits, order, 1) & (self._scores > -np.inf)

    def recall(self, k: int) -> np.ndarray:
        """Return the share of each query's relevant examples among its first ``k``, ``(query,)``."""
        recall: np.ndarray = self._hits[:, :k].sum(axis=1) / np.maximum(self.relevant, 1)
        return recall


class SecondPass:
    """The rank of each query's best relevant example, counted over the same blocks again.

    Args:
        best: From the first pass.
    """

    def __init__(self, best: np.ndarray) -> None:
        self._best = best[:, None]
        self._above = np.zeros(len(best), np.int64)
        self._level = np.zeros(len(best), np.int64)

    def add(self, scores: np.ndarray, relevant: np.ndarray) -> None:
        """Add a block; arguments as in ``FirstPass.add``."""
        self._above += (scores > self._best).sum(axis=1)
        self._level += ((scores == self._best) & ~relevant).sum(axis=1)

    def reciprocal_rank(self) -> np.ndarray:
        """Return one over the rank of the first relevant example; 0 when none could be ranked."""
        rank = 1 + self._above + self._level / 2
        return np.where(np.isfinite(self._best[:, 0]), 1 / rank, 0.0)


def chance_reciprocal_rank(n_examples: int, relevant: np.ndarray, terms: int = 1 << 20) -> float:
    """Return the mean reciprocal rank of a ranking by chance.

    The first of R relevant examples among n lies at rank r with probability
    ``C(n - r, R - 1) / C(n, R)``. Only the first ``terms`` ranks are summed: what is left is
    below ``1 / terms``.

    Args:
        relevant: Number of relevant examples of each query, at least 1.
    """
    distinct, times = np.unique(relevant, return_counts=True)
    means = [_first_by_chance(n_examples, int(count), terms) for count in distinct]
    return float(np.average(means, weights=times))


def _first_by_chance(n_examples: int, relevant: int, terms: int) -> float:
    ranks = np.arange(1, min(n_examples - relevant + 1, terms) + 1)
    # Chance that no relevant one came before rank r, step by step, in logarithms.
    misses = np.log1p(-relevant / (n_examples - ranks[:-1] + 1.0))
    before = np.exp(np.concatenate([[0.0], np.cumsum(misses)]))
    return float((before * relevant / (n_examples - ranks + 1.0) / ranks).sum())
