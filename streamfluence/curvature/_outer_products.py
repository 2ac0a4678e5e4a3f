"""The one matrix every dense curvature shares: the mean of outer products, block by block."""

from collections.abc import Sequence

import torch

from streamfluence.curvature._moments import Gram
from streamfluence.curvature._summed import Summed
from streamfluence.linalg import State, symmetric_eigen
from streamfluence.preconditioners.base import Preconditioner
from streamfluence.preconditioners.eigen import Eigen


class OuterProducts(Summed):
    """H = (1/n) sum of row row^T in each block, whatever the rows are."""

    sums = Gram()

    def factor(
        self,
        state: State,
        examples: float,
        damping: float | None,
        weights: Sequence[int] | None = None,
    ) -> Preconditioner:
        """Return the eigenpairs of every block."""
        pairs = [symmetric_eigen(gram / examples) for gram in self.sums.blocks(state)]
        values = [spectrum for spectrum, _ in pairs]
        dampings = self.dampings(values, damping, weights)
        return Eigen.of(torch.cat(values), [vectors for _, vectors in pairs], dampings)
