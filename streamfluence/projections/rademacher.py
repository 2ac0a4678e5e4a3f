"""Random-sign projection of the whole gradient."""

from torch import Tensor

from streamfluence.linalg import sign_block
from streamfluence.projections._random_matrix import RandomMatrix


class Rademacher(RandomMatrix):
    """Independent entries of -1 or +1, as in TRAK; cheaper to generate than Gaussians.

    Source:
        Achlioptas, Database-friendly random projections: Johnson-Lindenstrauss with binary coins,
        https://doi.org/10.1016/S0022-0000(03)00025-4; Park et al., TRAK: Attributing
        Model Behavior at Scale, https://arxiv.org/abs/2303.14186.
    """

    def entries(self, coordinates: Tensor, width: int) -> Tensor:
        """Return random signs, shape ``(coordinate, width)``."""
        return sign_block(self.seed, coordinates, width)
