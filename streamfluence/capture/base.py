"""What a capture gives: per-example gradients as sums of outer products, never weight-sized when avoidable.

The trainable parameters are cut into blocks. The gradient of one example in one
block is a stack of matrices, shape ``(group, left, right)``: *left* is the
output side of the layer, *right* its input side, with a constant 1 appended
when the layer's bias lives in the block. A block may be used more than once
(tied weights, a module called twice); its gradient is the sum over its uses. Every
kind of use knows by itself how to do what a projection or a proof asks of it.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """One block of trainable parameters: usually one layer, weight and bias together.

    Attributes:
        name: Unique, readable, e.g. ``encoder.0.linear1``.
        parameters: Names of the parameters it covers, as in ``model.named_parameters()``.
        groups, left, right: Shape of one example's gradient.
    """

    name: str
    parameters: tuple[str, ...]
    groups: int
    left: int
    right: int

    @property
    def size(self) -> int:
        """Number of gradient entries of one example."""
        return self.groups * self.left * self.right


@dataclass(frozen=True)
class Sides:
    """Both sides of a use, for their second moments.

    Attributes:
        left, right: Shape ``(example, group, position, side)``; no left where it is one-hot.
        squares: Squared norms of the left and of the right rows, ``(example, group, position)``.
        energy: Of their outer products, the same shape; of a whole gradient its squared entries.
        weights: What the left and the right rows count in the weighted moments; None is 1.
        index: Where one-hot left rows have their 1, ``(example, position)``.
    """

    left: Tensor | None
    right: Tensor
    squares: tuple[Tensor, Tensor]
    energy: Tensor
    weights: tuple[Tensor | None, Tensor | None] = (None, None)
    index: Tensor | None = None


class Use(ABC):
    """The gradients of a batch at one use of a block, in a form of its own.

    Everything said of G below is said of each example's gradient ``(group, left, right)``.
    """

    @property
    @abstractmethod
    def tensor(self) -> Tensor:
        """A tensor of this use, on its device and in its dtype, whose first axis is the examples."""

    @property
    @abstractmethod
    def positions(self) -> int | None:
        """Number of outer products an example; None for gradients that came whole."""

    @abstractmethod
    def of(self, examples: Tensor | slice) -> "Use":
        """Return the same of some examples, by their places."""

    def leading(self, examples: int) -> "Use":
        """Return the same of the first examples alone; what was not made yet is not made."""
        return self.of(slice(examples))

    @abstractmethod
    def float(self) -> "Use":
        """Return it in float32, so that sums over positions are not rounded to half precision."""

    def float_on_demand(self) -> "Use":
        """Return what `float` does, but make a side only when it is read, and anew every time.

        A convolution's inputs times a few columns is a small convolution; the unfolded inputs,
        nine times as large for a kernel of 3 x 3, are then never made.
        """
        return self.float()

    def swapped(self) -> "Use":
        """Return the uses of the transposed gradients."""
        raise NotImplementedError(f"{type(self).__name__} has no transposed form")

    @abstractmethod
    def scaled(self, left: Tensor, right: Tensor) -> "Use":
        """Return it with every entry times ``left * right``, shapes ``(group, left)``, ``(group, right)``."""

    @abstractmethod
    def dense(self, block: Block) -> Tensor:
        """Return G, shape ``(example, group, left, right)``."""

    @abstractmethod
    def weighted_sum(self, block: Block, factors: Tensor) -> Tensor:
        """Return ``sum_e factors_e G_e``, shape ``(group, left, right)``, without a G for each example."""

    @abstractmethod
    def box(self, groups: slice, rows: slice, columns: slice) -> Tensor:
        """Return ``G[groups, rows, columns]`` of every example."""

    @abstractmethod
    def entries(self, groups: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Return ``G[groups[j], rows[j], columns[j]]`` for every j, shape ``(example, entry)``."""

    @abstractmethod
    def between(self, left_basis: Tensor, right_basis: Tensor) -> Tensor:
        """Return ``left_basis^T G right_basis``; G is not formed.

        Args:
            left_basis: Shape ``(group or 1, left, row)``, float32; 1 means the same for every group.
            right_basis: Shape ``(group or 1, right, column)``, float32.

        Returns:
            Shape ``(example, group, row, column)``, float32.
        """

    @abstractmethod
    def rows_times(self, rows: Tensor, slot: Tensor, right_basis: Tensor) -> Tensor:
        """Return chosen rows of a one-group G times ``right_basis``, as `between` with unit vectors.

        Args:
            rows: int64, shape ``(row,)``, the rows wanted.
            slot: int64, shape ``(left,)``: the place of each row of G in ``rows``, or ``len(rows)``.
            right_basis: Shape ``(1, right, column)``, float32.

        Returns:
            Shape ``(example, 1, row, column)``, float32.
        """

    def gathered(self, bases: tuple[Tensor, Tensor], *places: Tensor) -> Tensor | None:
        """Return entries of `between` (group, row, column) one by one; None where that saves nothing."""
        return None

    @abstractmethod
    def sides(self) -> Sides:
        """Return both sides with what their second moments need."""

    @abstractmethod
    def side_squares(self, block: Block) -> tuple[Tensor, Tensor]:
        """Return sums of squares over examples and the other side, ``(group, left)``, ``(group, right)``.

        Of outer products each is squared by itself. Float64.
        """

    def products(self, other: "Use") -> Tensor:
        """Return the inner products of all outer products with those of ``other``.

        Shape ``(example, group, position, position of other)``; not of gradients that came whole.
        """
        raise NotImplementedError(f"{type(self).__name__} has no outer products")

    @property
    def right_rows(self) -> Tensor:
        """The right rows, shape ``(example, group, position, right)``."""
        raise NotImplementedError(f"{type(self).__name__} has no outer products")

    def left_products(self, left: Tensor) -> Tensor:
        """Return rows ``(example, group, position, left)`` times the left rows of this use."""
        raise NotImplementedError(f"{type(self).__name__} has no outer products")

    def left_entries(self, index: Tensor) -> Tensor:
        """Return `left_products` of one-hot rows, whose 1 is at ``index`` ``(example, position)``."""
        raise NotImplementedError(f"{type(self).__name__} has no outer products")


Uses = Mapping[str, Sequence[Use]]  # block name -> its uses, in call order


def dense_gradient(block: Block, uses: Sequence[Use]) -> Tensor:
    """Return the per-example gradient of one block, shape ``(example, group, left, right)``."""
    return functools.reduce(torch.add, (use.dense(block) for use in uses))


def weighted_sum(block: Block, uses: Sequence[Use], factors: Tensor) -> Tensor:
    """Return ``sum_e factors_e G_e`` of one block, shape ``(group, left, right)``."""
    return functools.reduce(torch.add, (use.weighted_sum(block, factors) for use in uses))
