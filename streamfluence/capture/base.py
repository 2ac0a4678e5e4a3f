"""What a capture gives: per-example gradients as sums of outer products, never weight-sized when avoidable.

The trainable parameters are cut into blocks. The gradient of one example in one
block is a stack of matrices, shape ``(group, left, right)``: *left* is the
output side of the layer, *right* its input side, with a constant 1 appended
when the layer's bias lives in the block. A block may be used more than once
(tied weights, a module called twice); its gradient is the sum over its uses.
"""

import functools
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
class Outer:
    """``G[e, k] = sum_t left[e, k, t] right[e, k, t]^T``; both ``(example, group, position, side)``."""

    left: Tensor
    right: Tensor

    def of(self, examples: Tensor) -> "Outer":
        """Return the same of some examples, by their places."""
        return Outer(self.left[examples], self.right[examples])

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


@dataclass(frozen=True)
class Indexed:
    """An ``Outer`` (one group) whose left rows are one-hot: ``index`` ``(example, position)`` int64.

    ``right`` has shape ``(example, position, right)`` and is zero where a position does not count.
    """

    index: Tensor
    right: Tensor


@dataclass(frozen=True)
class Dense:
    """The gradient itself, shape ``(example, group, left, right)``."""

    gradient: Tensor


Use = Outer | Indexed | Dense
Uses = Mapping[str, Sequence[Use]]  # block name -> its uses, in call order


def dense_gradient(block: Block, uses: Sequence[Use]) -> Tensor:
    """Return the per-example gradient of one block, shape ``(example, group, left, right)``."""
    return functools.reduce(torch.add, (_dense(block, use) for use in uses))


def _dense(block: Block, use: Use) -> Tensor:
    if isinstance(use, Dense):
        return use.gradient
    if isinstance(use, Outer):
        return torch.einsum("ekto,ekti->ekoi", use.left, use.right)
    examples = use.index.shape[0]
    gradient = use.right.new_zeros(examples, block.left, block.right)
    gradient.scatter_add_(1, use.index.unsqueeze(-1).expand_as(use.right), use.right)
    return gradient.unsqueeze(1)
