"""Scores as they are: every example counts as it does."""

import numpy as np

from streamfluence.scales.base import Columns, Scale


class None_(Scale):
    """Every multiplier is 1."""

    columns = ("self_influence",)
    keeps_prediction = True

    def of(self, columns: Columns) -> np.ndarray:
        return np.ones_like(columns["self_influence"])

    def meaning(self, unscaled: str) -> str:
        return unscaled

    def unit(self, unscaled: str) -> str:
        return unscaled
