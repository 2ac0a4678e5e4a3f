"""What one kind of layer has to know, and the outer products it returns.

A rule turns a call's input and output gradient into a `Use`. It gets both with the
examples first and the axes that the layer itself reads last; whatever lies between
are positions, in the same order in both.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from streamfluence.capture.base import Dense, Outer, Use

# A module that the rule accepts: torch declares every attribute of a module as Tensor | Module.
Layer = Any


class Rule:
    """Base of the layer kinds whose weight gradient has a closed form.

    The layer's trainable parameters are called ``weight`` and, if it has one, ``bias``.
    """

    def accepts(self, module: nn.Module) -> bool:
        """Return whether this rule is exact for ``module``."""
        raise NotImplementedError

    def refusal(self, module: Layer) -> str | None:
        """Return why an accepted module has no per-example gradient, with the remedy, or None."""
        return None

    def transposed(self, module: Layer) -> bool:
        """Return whether the weight is stored ``(right, left)``."""
        return False

    def axes(self, module: Layer, dimensions: int) -> range:
        """Return the axes of an input with so many dimensions that may be the example axis."""
        return range(1)

    def shape(self, module: Layer) -> tuple[int, int, int]:
        """Return ``(groups, left, right)`` of the weight's gradient, without a bias."""
        raise NotImplementedError

    def weight(self, module: Layer, inputs: Tensor, gradient: Tensor, bias: bool) -> Use:
        """Return the use of the weight, with the bias as its last right column if asked."""
        raise NotImplementedError

    def bias(self, module: Layer, gradient: Tensor) -> Use:
        """Return the use of the bias alone, a block of shape ``(1, left, 1)``."""
        raise NotImplementedError


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
        of: Callable[[Tensor], Use] | None = None,
    ) -> None:
        object.__setattr__(self, "_sides", (left, right, right_times, left_times, of))

    _sides: ClassVar  # an instance's own; a frozen dataclass gives it no field

    def of(self, examples: Tensor) -> Outer:
        """Return the same of some examples; nothing is made of the others where that is dear."""
        made = self._sides[4](examples) if self._sides[4] else None
        return made if isinstance(made, Outer) else super().of(examples)

    @property
    def left(self) -> Tensor:
        return self._sides[0]()

    @property
    def right(self) -> Tensor:
        return self._sides[1]()

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


def factor(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in the precision of gradients: float64 stays, all else is float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


def with_ones(tensor: Tensor, wanted: bool) -> Tensor:
    """Return ``tensor`` with a last column of ones if ``wanted``."""
    return torch.cat([tensor, tensor.new_ones(*tensor.shape[:-1], 1)], -1) if wanted else tensor


def columns(parts: Sequence[Tensor]) -> Dense:
    """Return vectors ``(example, left)`` as the columns of a dense gradient."""
    return Dense(torch.stack(list(parts), -1).unsqueeze(1))


def own_forward(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Return whether ``module`` computes exactly what one of ``kinds`` computes, subclass or not."""
    if "forward" in vars(module) or hasattr(module, "parametrizations"):
        return False
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds)
