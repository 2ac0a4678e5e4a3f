"""Scores as they are: every example counts as it does."""

import numpy as np

from streamfluence.columns import SELF_INFLUENCE
from streamfluence.scales.base import Columns, Scale


class None_(Scale):
    """Every multiplier is 1."""

    columns = (SELF_INFLUENCE,)
    keeps_prediction = True

    def of(self, columns: Columns) -> np.ndarray:
        return np.ones_like(columns[SELF_INFLUENCE])

    def meaning(self, unscaled: str) -> str:
        return unscaled

    def unit(self, unscaled: str) -> str:
        return unscaled
