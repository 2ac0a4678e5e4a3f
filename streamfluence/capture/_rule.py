"""What one kind of layer has to know, and the outer products it returns.

A rule turns a call's input and output gradient into a `Use`. It gets both with the
examples first and the axes that the layer itself reads last; whatever lies between
are positions, in the same order in both.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from streamfluence.capture._explicit import Explicit
from streamfluence.capture.base import Use

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


def in_gradient_precision(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in the precision of gradients: float64 stays, all else is float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


def with_ones(tensor: Tensor, wanted: bool) -> Tensor:
    """Return ``tensor`` with a last column of ones if ``wanted``."""
    return torch.cat([tensor, tensor.new_ones(*tensor.shape[:-1], 1)], -1) if wanted else tensor


def columns(parts: Sequence[Tensor]) -> Explicit:
    """Return vectors ``(example, left)`` as the columns of a dense gradient."""
    return Explicit(torch.stack(list(parts), -1).unsqueeze(1))


def own_forward(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Return whether ``module`` computes exactly what one of ``kinds`` computes, subclass or not."""
    if "forward" in vars(module) or hasattr(module, "parametrizations"):
        return False
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds)
