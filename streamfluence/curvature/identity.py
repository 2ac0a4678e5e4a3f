"""No curvature: scores are inner products of gradients.

The state is the second moment of each feature, which only tells the codec
where the energy of the rows lies.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from streamfluence.curvature._moments import Squares
from streamfluence.curvature._summed import Summed
from streamfluence.linalg import State
from streamfluence.preconditioners.base import Preconditioner
from streamfluence.preconditioners.diagonal import Diagonal


class Identity(Summed):
    """H + damping = I; whitening leaves rows as they are."""

    source = "loss"
    sums = Squares()

    def factor(
        self,
        state: State,
        examples: float,
        damping: float | None,
        weights: Sequence[int] | None = None,
    ) -> Preconditioner:
        """Return a diagonal of ones, with no blocks to speak of."""
        width = sum(map(len, self.sums.blocks(state)))
        ones = torch.ones(width, dtype=torch.float64)
        return Diagonal.of(ones, torch.zeros_like(ones))

    def energies(self, state: State, factor: Preconditioner, examples: float) -> Tensor:
        """Return the second moment of each feature."""
        return torch.cat(self.sums.blocks(state)).cpu() / examples
