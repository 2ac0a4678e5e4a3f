"""The scale and shift of LayerNorm, RMSNorm, GroupNorm and BatchNorm: short dense columns.

The gradient is ``sum_t g_t * x_t`` and ``sum_t g_t`` with x the normalised input, which
is computed again from the input: dividing the output by the scale fails where it is 0.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamfluence.capture._rule import Layer, Rule, columns, in_gradient_precision, own_forward
from streamfluence.capture.base import Use

_BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Norm(Rule):
    """A block of shape ``(1, channels, 1 or 2)``: scale, then shift."""

    def accepts(self, module: nn.Module) -> bool:
        return own_forward(module, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, *_BATCH)

    def refusal(self, module: Layer) -> str | None:
        if isinstance(module, _BATCH) and module.running_mean is None:
            return (
                "it has no running statistics, so it mixes the examples of a batch even in "
                "eval(); train it with track_running_stats=True or use another norm"
            )
        return None

    def axes(self, module: Layer, dimensions: int) -> range:
        trailing = getattr(module, "normalized_shape", None)
        return range(dimensions - len(trailing)) if trailing else range(1)

    def shape(self, module: Layer) -> tuple[int, int, int]:
        return 1, module.weight.numel(), 1

    def weight(self, module: Layer, inputs: Tensor, gradient: Tensor, bias: bool) -> Use:
        gradient = _channels_last(module, in_gradient_precision(gradient))
        normal = _channels_last(module, _normalised(module, in_gradient_precision(inputs)))
        scale = _summed_product(gradient, normal)
        return columns([scale, gradient.sum(1)] if bias else [scale])

    def bias(self, module: Layer, gradient: Tensor) -> Use:
        return columns([_channels_last(module, in_gradient_precision(gradient)).sum(1)])


def _summed_product(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum over positions of ``a * b``, shape ``(example, channel)``."""
    # On a GPU einsum turns both round in memory, which takes four times as long.
    return (a * b).sum(1) if a.is_cuda else torch.einsum("etc,etc->ec", a, b)


def _normalised(module: Layer, inputs: Tensor) -> Tensor:
    """Return what the layer multiplies by its scale, the shape of ``inputs``."""
    if isinstance(module, nn.LayerNorm):
        return functional.layer_norm(inputs, module.normalized_shape, eps=module.eps)
    if isinstance(module, nn.RMSNorm):
        eps = module.eps if module.eps is not None else torch.finfo(module.weight.dtype).eps
        return functional.rms_norm(inputs, module.normalized_shape, eps=eps)
    flat = inputs.flatten(0, 1)
    if isinstance(module, nn.GroupNorm):
        flat = functional.group_norm(flat, module.num_groups, eps=module.eps)
    else:
        mean, variance = (
            in_gradient_precision(module.running_mean),
            in_gradient_precision(module.running_var),
        )
        flat = functional.batch_norm(flat, mean, variance, eps=module.eps)
    return flat.view_as(inputs)


def _channels_last(module: Layer, tensor: Tensor) -> Tensor:
    """Return ``(example, position, channel)``."""
    if hasattr(module, "normalized_shape"):
        return tensor.reshape(tensor.shape[0], -1, module.weight.numel())
    # (example, rows, channel, space...): positions are rows and space, and there may be no space.
    return (
        tensor.unsqueeze(-1).flatten(3).movedim(2, -1).reshape(tensor.shape[0], -1, tensor.shape[2])
    )
