"""How well scores agree with a stronger reference, query by query. Pure numpy."""

from dataclasses import dataclass

import numpy as np

from streamfluence.errors import InputError
from streamfluence.evaluation.lds import spearman


@dataclass(frozen=True)
class Agreement:
    """Means over queries.

    Attributes:
        spearman: Rank correlation of the scores of all examples.
        top_overlap: Share of the reference's ``k`` largest scores among the ``k`` largest.
        relative_error: ``|scores - reference| / |reference|``.
    """

    spearman: float
    top_overlap: float
    relative_error: float


def agreement(scores: np.ndarray, reference: np.ndarray, k: int) -> Agreement:
    """Return how well ``scores`` agree with ``reference``, both ``(example, query)``.

    Raises:
        InputError: If there are too few examples to rank, or a query's reference is all zero.
    """
    if len(scores) < max(3, k):
        raise InputError(
            f"{len(scores)} examples are too few to compare their order and their first {k}; take "
            f"a larger sample"
        )
    norms = np.linalg.norm(reference, axis=0)
    if not norms.all():
        raise InputError(
            f"query {int(np.argmin(norms))} has no gradient, so every score is zero; leave it out"
        )
    return Agreement(
        spearman=float(spearman(scores.T, reference.T).mean()),
        top_overlap=float(
            np.mean([_overlap(*pair, k) for pair in zip(scores.T, reference.T, strict=True)])
        ),
        relative_error=float((np.linalg.norm(scores - reference, axis=0) / norms).mean()),
    )


def _overlap(one: np.ndarray, other: np.ndarray, k: int) -> float:
    first, second = (np.argsort(-scores, kind="stable")[:k] for scores in (one, other))
    return len(np.intersect1d(first, second)) / k
