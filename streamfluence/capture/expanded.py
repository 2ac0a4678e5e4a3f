"""Parameters and outputs that the whole batch shares, given one copy per example.

A position embedding called without the batch, or a class token added in a model's own
code, is read once for all examples. One copy per example in its place (a view: no
memory) makes autograd return one gradient per example, at no cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

_MOST_AXES = 4  # new leading axes tried: (B, T, H, W) images with a scale per channel need 4


@dataclass(frozen=True)
class Expanded:
    """How the copies are laid out so that the model's own broadcasting lines them up.

    Attributes:
        axis: The axis of length 1 that becomes the example axis; None for a new first axis.
        padding: New axes of length 1 after a new first axis.
    """

    axis: int | None
    padding: int = 0

    def copies(self, tensor: Tensor, examples: int) -> Tensor:
        """Return ``tensor`` with one copy per example, a view."""
        if self.axis is None:
            shape = (examples, *[1] * self.padding, *tensor.shape)
            return tensor.expand(shape)
        sizes = [-1] * tensor.ndim
        sizes[self.axis] = examples
        return tensor.expand(sizes)

    def collect(self, gradient: Tensor, shape: Sequence[int]) -> Tensor:
        """Return the gradient of `copies` as ``(example, *shape)``."""
        first = gradient if self.axis is None else gradient.movedim(self.axis, 0)
        return first.reshape(first.shape[0], *shape)


def candidates(shape: Sequence[int]) -> list[Expanded]:
    """Return the layouts worth trying for a tensor of ``shape``, the likeliest first."""
    ones = [Expanded(axis) for axis, size in enumerate(shape) if size == 1]
    return ones + [Expanded(None, padding) for padding in range(_MOST_AXES)]
