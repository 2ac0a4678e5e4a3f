"""Both sides of a gradient multiplied by thin matrices, in the order that costs least.

The gradient is never formed. Of the orders in which the three products can be done,
the one with the fewest multiplications for this number of positions is taken.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def thin(side: Tensor, basis: Tensor) -> Tensor:
    """Return ``side @ basis`` per group, shape ``(example, group, position, column)``."""
    if len(basis) == 1:
        return side @ basis[0]  # one product over all examples, groups and positions
    return torch.einsum("ekts,ksr->ektr", side, basis)


def cheapest_order(positions: int, left_shape: Sequence[int], right_shape: Sequence[int]) -> str:
    """Return which side to multiply first: ``both``, ``left`` or ``right``, by counting products."""
    (left, rows), (right, columns) = left_shape, right_shape
    cost = {
        "both": positions * (left * rows + right * columns + rows * columns),
        "left": positions * rows * (left + right) + rows * right * columns,
        "right": positions * columns * (left + right) + rows * left * columns,
    }
    return min(cost, key=cost.__getitem__)
