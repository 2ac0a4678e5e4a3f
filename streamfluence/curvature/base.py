"""Contract of a curvature: a damped, block-diagonal second-order matrix in feature space.

A state is additive: float64 sums over the vectors that the curvature is made of.
Laws: merge of parts equals the whole; what ``factor`` returns solves with the damped matrix, and
full rank is exact.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from streamfluence.curvature._moments import Moments
from streamfluence.errors import InputError
from streamfluence.linalg import State
from streamfluence.preconditioners.base import Preconditioner


class Curvature:
    """Base of every curvature; options are keyword arguments of ``__init__``.

    Attributes:
        source: Which vectors feed ``update``: ``probes`` (output-space probes pushed back through
            the Jacobian), ``loss`` (per-example loss gradients) or None (nothing is needed).
        row_moments: What is summed of loss gradients beside a curvature of other vectors, for
            ``half_whitened`` of its preconditioner; None where rows are stored as they are whitened.
        default_scale: Default damping as a multiple of a block's mean eigenvalue over all its weights.
        without_outputs: Name and options of the member of loss gradients that takes the place of one
            of ``probes`` where a task gives only a loss; None where there is none.
    """

    source: str | None = None
    row_moments: Moments | None = None
    default_scale = 0.0
    without_outputs: tuple[str, Mapping[str, Any]] | None = None

    def empty(self, widths: Sequence[int]) -> State:
        """Return the state of no examples for blocks of these widths."""
        raise NotImplementedError

    def update(
        self,
        state: State,
        rows: Tensor,
        weight: float = 1.0,
        uses: Mapping[str, Sequence[Any]] | None = None,
    ) -> State:
        """Return ``state`` plus one batch of vectors, each counted ``weight`` times.

        Args:
            rows: Their features, shape ``(example, feature)``.
            uses: The vectors themselves, over the weights of each block.
        """
        raise NotImplementedError

    def merge(self, a: State, b: State) -> State:
        """Return the state of both parts together."""
        raise NotImplementedError

    def factor(
        self,
        state: State,
        examples: float,
        damping: float | None,
        weights: Sequence[int] | None = None,
    ) -> Preconditioner:
        """Return the preconditioner of ``state / examples`` (a mean over examples, not a sum).

        Args:
            damping: One value for all blocks, in the unit of the eigenvalues; None takes
                ``default_scale`` times each block's mean eigenvalue.
            weights: How many weights each block stands for, over which the mean is taken; by default
                its width. A mean over the kept directions would move with their number.
        """
        raise NotImplementedError

    def energies(self, state: State, factor: Preconditioner, examples: float) -> Tensor:
        """Return the expected square of each whitened coordinate, shape ``(feature,)``, float64."""
        return factor.energies()

    def dampings(
        self, values: Sequence[Tensor], damping: float | None, weights: Sequence[int] | None
    ) -> Tensor:
        """Return the damping of every eigenvalue, of all blocks in a row; arguments as in ``factor``.

        Args:
            values: The eigenvalues of each block.
        """
        sizes = weights or [len(block) for block in values]
        chosen = [
            self.default_damping(block, size) if damping is None else damping
            for block, size in zip(values, sizes, strict=True)
        ]
        pairs = zip(values, chosen, strict=True)
        return torch.cat([torch.full_like(block, each) for block, each in pairs])

    def default_damping(self, values: Tensor, size: int) -> float:
        """Return the damping of a block of these eigenvalues that stands for ``size`` weights.

        Raises:
            InputError: If all are zero.
        """
        chosen = self.default_scale * float(values.sum()) / size
        if chosen <= 0:
            raise InputError(
                "a block of the curvature is zero on the whole sample, so no damping can be derived "
                "from it; set curvature.damping, or exclude the parameters that get no gradient"
            )
        return chosen
