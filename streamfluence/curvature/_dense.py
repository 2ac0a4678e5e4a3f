"""The one matrix every dense curvature shares: the mean of outer products, block by block."""

from collections.abc import Sequence

import torch

from streamfluence.curvature._moments import Gram
from streamfluence.curvature._summed import Summed
from streamfluence.linalg import State, symmetric_eigen
from streamfluence.preconditioners.base import Preconditioner
from streamfluence.preconditioners.eigen import Eigen


class Dense(Summed):
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
        values, vectors, dampings = [], [], []
        grams = self.sums.blocks(state)
        for gram, size in zip(grams, weights or map(len, grams), strict=True):
            spectrum, basis = symmetric_eigen(gram / examples)
            values.append(spectrum)
            vectors.append(basis)
            chosen = self.default_damping(spectrum, size) if damping is None else damping
            dampings.append(torch.full_like(spectrum, chosen))
        return Eigen.of(torch.cat(values), vectors, torch.cat(dampings))
