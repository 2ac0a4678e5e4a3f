"""Relative influence: scores over the root of an example's self-influence."""

import numpy as np

from streamfluence.columns import SELF_INFLUENCE
from streamfluence.scales._norms import inverse_norm
from streamfluence.scales.base import Columns, Scale


class Relative(Scale):
    """One over the root of the self-influence at each checkpoint, so that outliers do not win everywhere.

    Source:
        Barshan, Brunet and Dziugaite, RelatIF: Identifying Explanatory Training Examples via Relative
        Influence, https://arxiv.org/abs/2003.11630, there l-RelatIF.
    """

    columns = (SELF_INFLUENCE,)

    def of(self, columns: Columns) -> np.ndarray:
        return inverse_norm(columns[SELF_INFLUENCE])

    def meaning(self, unscaled: str) -> str:
        return (
            "score = the unscaled score over the root of the example's self-influence at each checkpoint "
            f"(RelatIF), so only order and sign are those of a score; unscaled: {unscaled}"
        )

    def unit(self, unscaled: str) -> str:
        return f"{unscaled}, over the root of a self-influence"
