"""Gradients as sums of outer products over positions, their sides made once or at every access."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from streamfluence.capture._entries import outer_entries
from streamfluence.capture._outer_sum import OuterSum
from streamfluence.capture._thin import cheapest_order, thin
from streamfluence.capture.base import Block, Sides, Use


@dataclass(frozen=True)
class Outer(OuterSum):
    """``G[e, k] = sum_t left[e, k, t] right[e, k, t]^T``; both ``(example, group, position, side)``."""

    left: Tensor
    right: Tensor

    @property
    def half(self) -> bool:
        """Whether thin products are made from half precision sides, which float32 would slow down."""
        return False

    def left_times(self, matrix: Tensor) -> Tensor:
        """Return ``left @ matrix`` in the dtype of ``matrix``, ``(left, k)``."""
        return self.left.to(matrix) @ matrix

    def right_times(self, matrix: Tensor) -> Tensor:
        """Return ``right @ matrix`` in the dtype of ``matrix``, ``(right, k)`` or ``(group, right, k)``."""
        return self.right.to(matrix) @ matrix

    def of(self, examples: Tensor | slice) -> "Outer":
        return Outer(self.left[examples], self.right[examples])

    def leading(self, examples: int) -> "Outer":
        return Deferred(
            lambda: self.left[:examples],
            lambda: self.right[:examples],
            lambda matrix: self.right_times(matrix)[:examples],
            (lambda matrix: self.left_times(matrix)[:examples]) if self.half else None,
        )

    def float(self) -> "Outer":
        return Outer(self.left.float(), self.right.float())

    def float_on_demand(self) -> "Outer":
        return Deferred(
            lambda: self.left.float(),
            lambda: self.right.float(),
            lambda matrix: self.right_times(matrix).float(),
            (lambda matrix: self.left_times(matrix).float()) if self.half else None,
        )

    def swapped(self) -> "Outer":
        return Deferred(lambda: self.right, lambda: self.left)

    def scaled(self, left: Tensor, right: Tensor) -> "Outer":
        rows = right[0] if len(right) == 1 else right
        return Deferred(
            lambda: self.left * left[:, None, :],
            lambda: self.right * right[:, None, :],
            lambda matrix: self.right_times(matrix * rows.to(matrix)[..., None]),
            (lambda matrix: self.left_times(matrix * left[0].to(matrix)[:, None]))
            if self.half
            else None,
        )

    def dense(self, block: Block) -> Tensor:
        return torch.einsum("ekto,ekti->ekoi", self.left, self.right)

    def weighted_sum(self, block: Block, factors: Tensor) -> Tensor:
        chosen = factors.nonzero().flatten()
        few = self.of(chosen)
        left, right = few.left, few.right
        left = left * factors[chosen].to(left)[:, None, None, None]
        one, other = (side.transpose(0, 1).flatten(1, 2) for side in (left, right))
        return one.transpose(1, 2) @ other

    def box(self, groups: slice, rows: slice, columns: slice) -> Tensor:
        left, right = self.left[:, groups, :, rows], self.right[:, groups, :, columns]
        return left.transpose(-1, -2) @ right

    def entries(self, groups: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return outer_entries(self.left, self.right, groups, rows, columns)

    def between(self, left_basis: Tensor, right_basis: Tensor) -> Tensor:
        if self.half:
            half = self._thin_left(left_basis).transpose(-1, -2)
            return half @ self._thin_right(right_basis)
        left = self.left
        order = cheapest_order(left.shape[2], left_basis.shape[1:], right_basis.shape[1:])
        if order == "left":
            half = thin(left, left_basis).transpose(-1, -2) @ self.right
            return thin(half, right_basis)
        right = self._thin_right(right_basis)
        if order == "right":
            return thin(right.transpose(-1, -2) @ left, left_basis).transpose(-1, -2)
        return thin(left, left_basis).transpose(-1, -2) @ right

    def rows_times(self, rows: Tensor, slot: Tensor, right_basis: Tensor) -> Tensor:
        columns = thin(self.right, right_basis)
        return self.left[..., rows].transpose(-1, -2) @ columns

    def gathered(self, bases: tuple[Tensor, Tensor], *places: Tensor) -> Tensor:
        return outer_entries(self._thin_left(bases[0]), self._thin_right(bases[1]), *places)

    def sides(self) -> Sides:
        left, right = self.left, self.right
        squares = left.square().sum(3), right.square().sum(3)
        return Sides(left, right, squares, squares[1] * squares[0], (squares[1], squares[0]))

    def side_squares(self, block: Block) -> tuple[Tensor, Tensor]:
        left, right = self.left.square(), self.right.square()
        rows, columns = left * right.sum(3, keepdim=True), right * left.sum(3, keepdim=True)
        return rows.sum((0, 2), dtype=torch.float64), columns.sum((0, 2), dtype=torch.float64)

    def products(self, other: Use) -> Tensor:
        right = self.right @ other.right_rows.transpose(-1, -2)
        return other.left_products(self.left) * right

    @property
    def right_rows(self) -> Tensor:
        return self.right

    def left_products(self, left: Tensor) -> Tensor:
        return left @ self.left.transpose(-1, -2)

    def left_entries(self, index: Tensor) -> Tensor:
        wanted = index[:, None, None, :].expand(-1, 1, self.left.shape[2], -1)
        return self.left.gather(3, wanted).transpose(-1, -2)

    def _thin_left(self, basis: Tensor) -> Tensor:
        """Return ``thin(left, basis)``, by the layer's own product where it has one."""
        return self.left_times(basis[0]) if len(basis) == 1 else thin(self.left, basis)

    def _thin_right(self, basis: Tensor) -> Tensor:
        """Return ``thin(right, basis)``, without making the right side where the layer can."""
        return self.right_times(basis[0] if len(basis) == 1 else basis)


class Deferred(Outer):
    """An `Outer` whose sides are made anew at each access, so an unused one costs nothing.

    Ones columns, unfolded images and casts are as large as the activations of the
    whole network; made on access, only one block's are alive at a time. Bind a side
    to a name when it is needed twice.
    """

    def __init__(
        self,
        left: Callable[[], Tensor],
        right: Callable[[], Tensor],
        right_times: Callable[[Tensor], Tensor] | None = None,
        left_times: Callable[[Tensor], Tensor] | None = None,
        of: Callable[[Tensor | slice], Use] | None = None,
    ) -> None:
        object.__setattr__(self, "_sides", (left, right, right_times, left_times, of))

    _sides: ClassVar[Any]  # an instance's own; a frozen dataclass gives it no field

    def of(self, examples: Tensor | slice) -> Outer:
        """Return the same of some examples; nothing is made of the others where that is dear."""
        made = self._sides[4](examples) if self._sides[4] else None
        return made if isinstance(made, Outer) else super().of(examples)

    @property
    def left(self) -> Tensor:
        made: Tensor = self._sides[0]()
        return made

    @property
    def right(self) -> Tensor:
        made: Tensor = self._sides[1]()
        return made

    @property
    def half(self) -> bool:
        """Whether there is a product of the left side, which only half precision needs."""
        return self._sides[3] is not None

    def left_times(self, matrix: Tensor) -> Tensor:
        """Return ``left @ matrix``, in half precision where the side was made in it."""
        times = self._sides[3]
        return times(matrix) if times else super().left_times(matrix)

    def right_times(self, matrix: Tensor) -> Tensor:
        """Return ``right @ matrix``; a convolution does it without unfolding its input."""
        times = self._sides[2]
        return times(matrix) if times else super().right_times(matrix)
