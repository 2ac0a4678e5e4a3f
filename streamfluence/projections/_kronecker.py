"""Both sides of a gradient multiplied by thin matrices: ``left_basis^T G right_basis`` per group.

The gradient is never formed. Of the orders in which the three products can be done,
the one with the fewest multiplications for this number of positions is taken.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from streamfluence.capture.base import Dense, Indexed, Outer, Use


def core(use: Use, left_basis: Tensor, right_basis: Tensor) -> Tensor:
    """Return ``left_basis^T G right_basis`` for every example and group.

    Args:
        use: One use of a block, float32.
        left_basis: Shape ``(group or 1, left, row)``, float32; 1 means the same for every group.
        right_basis: Shape ``(group or 1, right, column)``, float32.

    Returns:
        Shape ``(example, group, row, column)``, float32.
    """
    if isinstance(use, Dense):
        return _dense_core(use.gradient, left_basis, right_basis)
    if isinstance(use, Indexed):
        rows, columns = left_basis[0][use.index], use.right @ right_basis[0]
        return (rows.transpose(-1, -2) @ columns).unsqueeze(1)
    return _outer_core(use, left_basis, right_basis)


def thin(side: Tensor, basis: Tensor) -> Tensor:
    """Return ``side @ basis`` per group, shape ``(example, group, position, column)``."""
    if len(basis) == 1:
        return side @ basis[0]  # one product over all examples, groups and positions
    return torch.einsum("ekts,ksr->ektr", side, basis)


def thin_left(use: Outer, basis: Tensor) -> Tensor:
    """Return ``thin(use.left, basis)``, by the layer's own product where it has one."""
    return use.left_times(basis[0]) if len(basis) == 1 else thin(use.left, basis)


def thin_right(use: Outer, basis: Tensor) -> Tensor:
    """Return ``thin(use.right, basis)``, without making the right side where the layer can."""
    return use.right_times(basis[0] if len(basis) == 1 else basis)


def _outer_core(use: Outer, left_basis: Tensor, right_basis: Tensor) -> Tensor:
    if use.half:
        return thin_left(use, left_basis).transpose(-1, -2) @ thin_right(use, right_basis)
    left = use.left
    order = cheapest_order(left.shape[2], left_basis.shape[1:], right_basis.shape[1:])
    if order == "left":
        half = thin(left, left_basis).transpose(-1, -2) @ use.right
        return thin(half, right_basis)
    right = thin_right(use, right_basis)
    if order == "right":
        return thin(right.transpose(-1, -2) @ left, left_basis).transpose(-1, -2)
    return thin(left, left_basis).transpose(-1, -2) @ right


def _dense_core(gradient: Tensor, left_basis: Tensor, right_basis: Tensor) -> Tensor:
    (left, rows), (right, columns) = left_basis.shape[1:], right_basis.shape[1:]
    if left * columns * (right + rows) <= right * rows * (left + columns):
        half = thin(gradient, right_basis)
        return thin(half.transpose(-1, -2), left_basis).transpose(-1, -2)
    half = thin(gradient.transpose(-1, -2), left_basis)
    return thin(half.transpose(-1, -2), right_basis)


def cheapest_order(positions: int, left_shape: Sequence[int], right_shape: Sequence[int]) -> str:
    """Return which side to multiply first: ``both``, ``left`` or ``right``, by counting products."""
    (left, rows), (right, columns) = left_shape, right_shape
    cost = {
        "both": positions * (left * rows + right * columns + rows * columns),
        "left": positions * rows * (left + right) + rows * right * columns,
        "right": positions * columns * (left + right) + rows * left * columns,
    }
    return min(cost, key=cost.__getitem__)


def core_of_rows(use: Use, rows: Tensor, slot: Tensor, right_basis: Tensor) -> Tensor:
    """Return chosen rows of a one-group gradient times ``right_basis``, as ``core`` with unit vectors.

    Args:
        use: One use of a block with one group, float32.
        rows: int64, shape ``(row,)``, the gradient rows wanted.
        slot: int64, shape ``(left,)``: the place of each gradient row in ``rows``, or ``len(rows)``.
        right_basis: Shape ``(1, right, column)``, float32.

    Returns:
        Shape ``(example, 1, row, column)``, float32.
    """
    if isinstance(use, Dense):
        return thin(use.gradient[:, :, rows], right_basis)
    columns = thin(use.right, right_basis)
    if isinstance(use, Outer):
        return use.left[..., rows].transpose(-1, -2) @ columns
    # One row of columns is added a position: a one-hot product would cost len(rows) times as much.
    total = columns.new_zeros(len(columns), len(rows) + 1, columns.shape[-1])
    total.scatter_add_(1, slot[use.index].unsqueeze(-1).expand_as(columns), columns)
    return total[:, None, :-1]
