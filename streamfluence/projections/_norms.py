"""Squared norms of per-example gradients given as sums of outer products, exact."""

from collections.abc import Sequence

import torch
from torch import Tensor

from streamfluence.capture.base import Block, Dense, Indexed, Outer, Use, dense_gradient

_GRAM_ENTRIES = 1 << 24  # 64 MiB for each of the two position-by-position matrices


def squared_norms(block: Block, uses: Sequence[Use]) -> Tensor:
    """Return the squared norm of the gradient of each example and group.

    Forms the gradient, or the products between positions, whichever is cheaper.

    Returns:
        Shape ``(example, group)``, float64.

    Source:
        Goodfellow (2015), arXiv:1510.01799; Li et al. (2022), arXiv:2110.05679 (ghost norm).
    """
    sums = [use for use in uses if not isinstance(use, Dense)]
    positions = sum(use.right.shape[-2] for use in sums)
    cheap = positions * (block.left + block.right) < block.left * block.right
    if len(sums) < len(uses) or not cheap:
        return dense_gradient(block, uses).square().sum((2, 3), dtype=torch.float64)
    step = max(1, _GRAM_ENTRIES // (block.groups * positions**2))
    starts = range(0, len(sums[0].right), step)
    return torch.cat([_ghost([_part(use, start, step) for use in sums]) for start in starts])


def _ghost(uses: Sequence[Outer | Indexed]) -> Tensor:
    products = [
        (_left_gram(one, other) * _right_gram(one, other)).sum((2, 3), dtype=torch.float64)
        for one in uses
        for other in uses
    ]
    return torch.stack(products).sum(0)


def _left_gram(one: Outer | Indexed, other: Outer | Indexed) -> Tensor:
    if isinstance(one, Outer) and isinstance(other, Outer):
        return one.left @ other.left.transpose(-1, -2)
    if isinstance(one, Outer):
        assert isinstance(other, Indexed)
        index = other.index[:, None, None, :].expand(-1, 1, one.left.shape[2], -1)
        return one.left.gather(3, index)
    if isinstance(other, Outer):
        return _left_gram(other, one).transpose(-1, -2)
    return (one.index[:, None, :, None] == other.index[:, None, None, :]).to(one.right.dtype)


def _right_gram(one: Outer | Indexed, other: Outer | Indexed) -> Tensor:
    return _right(one) @ _right(other).transpose(-1, -2)


def _right(use: Outer | Indexed) -> Tensor:
    return use.right.unsqueeze(1) if isinstance(use, Indexed) else use.right


def _part(use: Outer | Indexed, start: int, step: int) -> Outer | Indexed:
    part = slice(start, start + step)
    if isinstance(use, Indexed):
        return Indexed(use.index[part], use.right[part])
    return Outer(use.left[part], use.right[part])
