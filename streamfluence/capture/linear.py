"""``nn.Linear``, and the transposed ``Conv1D`` of the transformers library.

The gradient is ``sum_t g_t a_t^T`` over any number of middle axes.
"""

from torch import Tensor, nn

from streamfluence.capture._outer import Deferred
from streamfluence.capture._rule import (
    Layer,
    Rule,
    columns,
    in_gradient_precision,
    own_forward,
    with_ones,
)
from streamfluence.capture.base import Use
from streamfluence.linalg import is_half_on_gpu, times_half


class Linear(Rule):
    """Left is the output side, right the input side, with a last 1 for the bias."""

    def accepts(self, module: nn.Module) -> bool:
        return own_forward(module, nn.Linear) or self.transposed(module)

    def transposed(self, module: Layer) -> bool:
        # Known by name and shape, so that transformers is not imported.
        weight = getattr(module, "weight", None)
        return (
            type(module).__name__ == "Conv1D"
            and weight is not None
            and weight.ndim == 2
            and getattr(module, "nf", None) == weight.shape[1]
        )

    def axes(self, module: Layer, dimensions: int) -> range:
        return range(dimensions - 1)

    def shape(self, module: Layer) -> tuple[int, int, int]:
        first, second = module.weight.shape
        return (1, second, first) if self.transposed(module) else (1, first, second)

    def weight(self, module: Layer, inputs: Tensor, gradient: Tensor, bias: bool) -> Use:
        # Under autocast the layer rounded its input, too, so that is what its gradient is made of.
        half = is_half_on_gpu(gradient)
        inputs = inputs.bfloat16() if half else inputs
        return Deferred(
            lambda: in_gradient_precision(_positions(gradient)),
            lambda: with_ones(in_gradient_precision(_positions(inputs)), bias),
            lambda matrix: _right_times(_positions(inputs), bias, matrix),
            (lambda matrix: times_half(_positions(gradient), matrix)) if half else None,
        )

    def bias(self, module: Layer, gradient: Tensor) -> Use:
        return columns([in_gradient_precision(_positions(gradient)).sum((1, 2))])


def _positions(tensor: Tensor) -> Tensor:
    """Return ``(example, 1, position, side)``."""
    return tensor.reshape(tensor.shape[0], 1, -1, tensor.shape[-1])


def _right_times(inputs: Tensor, bias: bool, matrix: Tensor) -> Tensor:
    """Return ``with_ones(inputs, bias) @ matrix``, without a copy of the inputs."""
    if not bias:
        return _times(inputs, matrix)
    product = _times(inputs, matrix[..., :-1, :])
    return product + matrix[..., -1:, :].to(product)


def _times(side: Tensor, matrix: Tensor) -> Tensor:
    """Return ``side @ matrix`` in the precision of gradients."""
    if is_half_on_gpu(side):
        return times_half(side, matrix)
    side = in_gradient_precision(side)
    return side @ matrix.to(side)
