"""Squared norms of per-example gradients given as sums of outer products, exact."""

from collections.abc import Sequence

import torch
from torch import Tensor

from streamfluence.capture.base import Block, Use, dense_gradient

_GRAM_ENTRIES = 1 << 24  # 64 MiB for each of the two position-by-position matrices


def squared_norms(block: Block, uses: Sequence[Use]) -> Tensor:
    """Return the squared norm of the gradient of each example and group.

    Forms the gradient, or the products between positions, whichever is cheaper.

    Returns:
        Shape ``(example, group)``, float64.

    Source:
        Goodfellow, Efficient Per-Example Gradient Computations, https://arxiv.org/abs/1510.01799; Li et al.,
        Large Language Models Can Be Strong Differentially Private Learners,
        https://arxiv.org/abs/2110.05679 (ghost norm).
    """
    counts = [use.positions for use in uses]
    positions = sum(count or 0 for count in counts)
    cheap = positions * (block.left + block.right) < block.left * block.right
    if None in counts or not cheap:
        return dense_gradient(block, uses).square().sum((2, 3), dtype=torch.float64)
    step = max(1, _GRAM_ENTRIES // (block.groups * positions**2))
    starts = range(0, len(uses[0].tensor), step)
    return torch.cat([_ghost([use.of(slice(i, i + step)) for use in uses]) for i in starts])


def _ghost(uses: Sequence[Use]) -> Tensor:
    products = [
        one.products(other).sum((2, 3), dtype=torch.float64) for one in uses for other in uses
    ]
    return torch.stack(products).sum(0)
