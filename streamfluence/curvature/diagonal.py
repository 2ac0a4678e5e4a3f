"""One number a direction: the mean square of each feature, linear in the width."""

from collections.abc import Sequence

import torch

from streamfluence.curvature._moments import Squares
from streamfluence.curvature._summed import Summed
from streamfluence.errors import InputError
from streamfluence.linalg import State
from streamfluence.preconditioners.base import Preconditioner
from streamfluence.preconditioners.diagonal import Diagonal as DiagonalPreconditioner

SCALES = {"probes": 1.0, "loss": 0.3}  # as of the dense matrices of the same vectors


class Diagonal(Summed):
    """H = diag((1/n) sum of row^2): no direction is joined with another, so rows may be as wide as wished.

    In the pairs of eigenvectors of the projection ``spectral`` it is EK-FAC: eigenvectors of
    Kronecker factors, and the exact diagonal of the curvature in their basis. It is so to the letter with
    ``projection.options = { plain = true, dense_limit = 1 }`` and a width of all pairs; the default
    takes factors that hold more of the gradients, and for small layers eigenvectors of the whole
    covariance.

    One block over all layers is the same matrix as one a layer.

    Args:
        source: ``probes`` for the diagonal of the Gauss-Newton matrix, ``loss`` for that of the empirical
            Fisher matrix, which a task that gives a bare loss has.

    Source:
        George et al., Fast Approximate Natural Gradient Descent in a Kronecker-factored Eigenbasis,
        https://arxiv.org/abs/1806.03884.
    """

    sums = Squares()
    without_outputs = ("diagonal", {"source": "loss"})

    def __init__(self, *, source: str = "probes") -> None:
        if source not in SCALES:
            raise InputError(
                f"the curvature diagonal has no source {source!r}; set curvature.options.source to "
                f"'probes' or 'loss'"
            )
        self.source, self.default_scale = source, SCALES[source]
        self.row_moments = Squares() if source == "probes" else None

    def factor(
        self,
        state: State,
        examples: float,
        damping: float | None,
        weights: Sequence[int] | None = None,
    ) -> Preconditioner:
        """Return the mean squares, and the damping of every block."""
        values = [squares / examples for squares in self.sums.blocks(state)]
        dampings = self.dampings(values, damping, weights)
        return DiagonalPreconditioner.of(torch.cat(values), dampings, [len(v) for v in values])
