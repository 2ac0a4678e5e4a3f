"""Outer products with one-hot left sides, as of an embedding: kept as indices."""

from dataclasses import dataclass

import torch
from torch import Tensor

from streamfluence.capture._entries import indexed_entries
from streamfluence.capture._outer_sum import OuterSum
from streamfluence.capture._thin import thin
from streamfluence.capture.base import Block, Sides, Use


@dataclass(frozen=True)
class Indexed(OuterSum):
    """An `Outer` (one group) whose left rows are one-hot: ``index`` ``(example, position)`` int64.

    ``right`` has shape ``(example, position, right)`` and is zero where a position does not count.
    """

    index: Tensor
    right: Tensor

    def of(self, examples: Tensor | slice) -> "Indexed":
        return Indexed(self.index[examples], self.right[examples])

    def float(self) -> "Indexed":
        return Indexed(self.index, self.right.float())

    def scaled(self, left: Tensor, right: Tensor) -> "Indexed":
        return Indexed(self.index, self.right * right[0] * left[0][self.index].unsqueeze(-1))

    def dense(self, block: Block) -> Tensor:
        gradient = self.right.new_zeros(self.index.shape[0], block.left, block.right)
        gradient.scatter_add_(1, self.index.unsqueeze(-1).expand_as(self.right), self.right)
        return gradient.unsqueeze(1)

    def weighted_sum(self, block: Block, factors: Tensor) -> Tensor:
        chosen = factors.nonzero().flatten()
        weights, chosen = factors[chosen].to(self.right), chosen.to(self.right.device)
        right = self.right[chosen] * weights[:, None, None]
        total = right.new_zeros(block.left, block.right)
        return total.index_add_(0, self.index[chosen].flatten(), right.flatten(0, 1))[None]

    def box(self, groups: slice, rows: slice, columns: slice) -> Tensor:
        right, count = self.right[..., columns], rows.stop - rows.start
        inside = (self.index >= rows.start) & (self.index < rows.stop)
        # Positions outside the box go to a spare row that is cut off.
        row = torch.where(inside, self.index - rows.start, count)
        return _summed_rows(row, right, count)

    def entries(self, groups: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return indexed_entries(self.index, self.right, rows, columns)

    def between(self, left_basis: Tensor, right_basis: Tensor) -> Tensor:
        rows, columns = left_basis[0][self.index], self.right @ right_basis[0]
        return (rows.transpose(-1, -2) @ columns).unsqueeze(1)

    def rows_times(self, rows: Tensor, slot: Tensor, right_basis: Tensor) -> Tensor:
        # One row of columns is added a position: a one-hot product would cost len(rows) times as much.
        columns = thin(self.right, right_basis)
        return _summed_rows(slot[self.index], columns, len(rows))[:, None]

    def sides(self) -> Sides:
        energy = self.right.square().sum(2)[:, None]
        squares = torch.ones_like(energy), energy
        return Sides(None, self.right[:, None], squares, energy, index=self.index)

    def side_squares(self, block: Block) -> tuple[Tensor, Tensor]:
        squares = self.right.square()
        left = squares.new_zeros(1, block.left, dtype=torch.float64)
        left.index_add_(1, self.index.flatten(), squares.sum(2).flatten()[None].double())
        return left, squares.sum((0, 1), dtype=torch.float64)[None]

    def products(self, other: Use) -> Tensor:
        right = self.right_rows @ other.right_rows.transpose(-1, -2)
        return other.left_entries(self.index) * right

    @property
    def right_rows(self) -> Tensor:
        return self.right.unsqueeze(1)

    def left_products(self, left: Tensor) -> Tensor:
        index = self.index[:, None, None, :].expand(-1, 1, left.shape[2], -1)
        return left.gather(3, index)

    def left_entries(self, index: Tensor) -> Tensor:
        same = index[:, None, :, None] == self.index[:, None, None, :]
        return same.to(self.right.dtype)


def _summed_rows(place: Tensor, rows: Tensor, count: int) -> Tensor:
    """Return the sums of the rows of each place, ``(example, count, column)``; place ``count`` is lost."""
    total = rows.new_zeros(len(rows), count + 1, rows.shape[-1])
    return total.scatter_add_(1, place.unsqueeze(-1).expand_as(rows), rows)[:, :count]
