"""Gaussian random projection of the whole gradient."""

from torch import Tensor

from streamfluence.projections._random import gaussians
from streamfluence.projections._random_matrix import RandomMatrix


class Gaussian(RandomMatrix):
    """Independent Gaussian entries; the reference that cheaper projections are compared with."""

    def entries(self, coordinates: Tensor, width: int) -> Tensor:
        """Return standard Gaussians, shape ``(coordinate, width)``."""
        return gaussians(self.seed, coordinates, width)
