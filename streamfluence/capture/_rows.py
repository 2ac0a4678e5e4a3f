"""Single rows and weighted sums of rows, from the uses of a block."""

from collections.abc import Sequence

import torch
from torch import Tensor

from streamfluence.capture._blocks import Filled
from streamfluence.capture.base import Dense, Indexed, Use


def weighted_sum(filled: Filled, uses: Sequence[Use], factors: Tensor) -> Tensor:
    """Return ``sum_e factors_e row_e`` of a block, ``(group, left, right)``, without a row for each."""
    total: Tensor | None = None
    chosen = factors.nonzero().flatten()
    for use in uses:
        part = _weighted(filled, use, chosen, factors[chosen])
        total = part if total is None else total + part
    assert total is not None
    return total


def _weighted(filled: Filled, use: Use, chosen: Tensor, factors: Tensor) -> Tensor:
    if isinstance(use, Dense):
        rows = use.gradient[chosen.to(use.gradient.device)]
        return torch.einsum("e,eglr->glr", factors.to(rows), rows)
    if isinstance(use, Indexed):
        chosen = chosen.to(use.right.device)
        right = use.right[chosen] * factors.to(use.right)[:, None, None]
        total = right.new_zeros(filled.block.left, filled.block.right)
        return total.index_add_(0, use.index[chosen].flatten(), right.flatten(0, 1))[None]
    few = use.of(chosen)
    left, right = few.left, few.right
    left = left * factors.to(left)[:, None, None, None]
    one, other = (side.transpose(0, 1).flatten(1, 2) for side in (left, right))
    return one.transpose(1, 2) @ other
