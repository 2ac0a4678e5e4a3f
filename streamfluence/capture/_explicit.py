"""Gradients that come whole."""

from dataclasses import dataclass

import torch
from torch import Tensor

from streamfluence.capture._thin import thin
from streamfluence.capture.base import Block, Sides, Use


@dataclass(frozen=True)
class Explicit(Use):
    """The gradient itself, shape ``(example, group, left, right)``."""

    gradient: Tensor

    @property
    def tensor(self) -> Tensor:
        return self.gradient

    @property
    def positions(self) -> None:
        return None

    def of(self, examples: Tensor | slice) -> "Explicit":
        return Explicit(self.gradient[examples])

    def float(self) -> "Explicit":
        return Explicit(self.gradient.float())

    def swapped(self) -> "Explicit":
        return Explicit(self.gradient.transpose(2, 3))

    def scaled(self, left: Tensor, right: Tensor) -> "Explicit":
        return Explicit(self.gradient * left[:, :, None] * right[:, None, :])

    def dense(self, block: Block) -> Tensor:
        return self.gradient

    def weighted_sum(self, block: Block, factors: Tensor) -> Tensor:
        chosen = factors.nonzero().flatten()
        rows = self.gradient[chosen.to(self.gradient.device)]
        return torch.einsum("e,eglr->glr", factors[chosen].to(rows), rows)

    def box(self, groups: slice, rows: slice, columns: slice) -> Tensor:
        return self.gradient[:, groups, rows, columns]

    def entries(self, groups: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return self.gradient[:, groups, rows, columns]

    def between(self, left_basis: Tensor, right_basis: Tensor) -> Tensor:
        (left, rows), (right, columns) = left_basis.shape[1:], right_basis.shape[1:]
        if left * columns * (right + rows) <= right * rows * (left + columns):
            half = thin(self.gradient, right_basis)
            return thin(half.transpose(-1, -2), left_basis).transpose(-1, -2)
        half = thin(self.gradient.transpose(-1, -2), left_basis)
        return thin(half.transpose(-1, -2), right_basis)

    def rows_times(self, rows: Tensor, slot: Tensor, right_basis: Tensor) -> Tensor:
        return thin(self.gradient[:, :, rows], right_basis)

    def sides(self) -> Sides:
        energy = self.gradient.square()
        return Sides(self.gradient.transpose(2, 3), self.gradient, (energy, energy), energy)

    def side_squares(self, block: Block) -> tuple[Tensor, Tensor]:
        squares = self.gradient.square()
        return squares.sum((0, 3), dtype=torch.float64), squares.sum((0, 2), dtype=torch.float64)
