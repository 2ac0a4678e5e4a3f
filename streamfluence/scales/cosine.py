"""Cosine similarity: rows and queries of norm 1."""

import numpy as np

from streamfluence.columns import SELF_INFLUENCE
from streamfluence.scales._norms import inverse_norm
from streamfluence.scales.base import Columns, Scale


class Cosine(Scale):
    """One over the norm of the whitened row, and of the whitened query: the cosine of the two.

    With several checkpoints a score is the sum of their cosines times their weights, without 1/n: the
    mean of the cosines where no weights are given. Rows that are quantised move it by as much.
    Of one number an example, such as the loss, every cosine is 1 or -1.

    Source:
        Xia et al., LESS: Selecting Influential Data for Targeted Instruction Tuning,
        https://arxiv.org/abs/2402.04333, there of gradients that are not whitened:
        curvature.name = ``identity``.
    """

    columns = (SELF_INFLUENCE,)
    per_example = False

    def of(self, columns: Columns) -> np.ndarray:
        return inverse_norm(columns[SELF_INFLUENCE])

    def of_queries(self, columns: Columns) -> np.ndarray:
        return inverse_norm(columns[SELF_INFLUENCE])

    def meaning(self, unscaled: str) -> str:
        return (
            "score = cosine similarity of the rows of example and query, summed over checkpoints by their "
            f"weights, without 1/n; its sign is that of the unscaled score: {unscaled}"
        )

    def unit(self, unscaled: str) -> str:
        return "none: a cosine, summed over checkpoints by their weights"
