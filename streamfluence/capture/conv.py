"""``nn.Conv1d``, ``Conv2d`` and ``Conv3d`` with every stride, dilation, group and padding.

The input is unfolded into one column per output position, by one strided copy, and
only when a consumer reads it: a thin product with it is a convolution by itself.
"""

from torch import Tensor, nn
from torch.nn import functional

from streamfluence.capture._outer import Deferred
from streamfluence.capture._rule import Layer, Rule, columns, in_gradient_precision, own_forward
from streamfluence.capture.base import Use

_CONVOLVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


class Conv(Rule):
    """``groups`` matrices: output channels of a group by its input channels times kernel."""

    def accepts(self, module: nn.Module) -> bool:
        return own_forward(module, nn.Conv1d, nn.Conv2d, nn.Conv3d)

    def shape(self, module: Layer) -> tuple[int, int, int]:
        per_group = module.out_channels // module.groups
        return module.groups, per_group, module.weight[0].numel()

    def weight(self, module: Layer, inputs: Tensor, gradient: Tensor, bias: bool) -> Use:
        whole, arrived = inputs, gradient
        inputs, gradient = _folded(module, inputs), _folded(module, gradient)
        return Deferred(
            lambda: _left(module, in_gradient_precision(gradient)),
            lambda: _right(module, in_gradient_precision(inputs), bias),
            # cuDNN's convolutions are TF32 by default, products of matrices are not.
            None
            if inputs.is_cuda
            else lambda matrix: _right_times(module, in_gradient_precision(inputs), bias, matrix),
            of=lambda some: self.weight(module, whole[some], arrived[some], bias),
        )

    def bias(self, module: Layer, gradient: Tensor) -> Use:
        return columns([in_gradient_precision(_folded(module, gradient)).flatten(3).sum((1, 3))])


def _left(module: Layer, gradient: Tensor) -> Tensor:
    """Return ``(example, group, position, output channel)``; a view unless examples are folded."""
    return _per_group(module.groups, gradient.flatten(3))


def _right(module: Layer, inputs: Tensor, bias: bool) -> Tensor:
    """Return ``(example, group, position, input channel * kernel (+ 1))``."""
    windows = _windows(module, _padded(module, inputs.flatten(0, 1)))
    examples, space = windows.shape[0], windows.shape[2 + len(module.kernel_size) :]
    height = windows[0].numel() // space.numel() // module.groups
    sides = windows.new_empty(examples, module.groups, height + bias, *space)
    # Written in place: concatenating the ones would copy the largest tensor twice.
    sides[:, :, :height].unflatten(2, (-1, *module.kernel_size)).copy_(
        windows.unflatten(1, (module.groups, -1))
    )
    sides[:, :, height:] = 1.0
    sides = sides.flatten(3).flatten(1, 2)
    return _per_group(module.groups, sides.unflatten(0, inputs.shape[:2]))


def _right_times(module: Layer, inputs: Tensor, bias: bool, matrix: Tensor) -> Tensor:
    """Return ``_right(...) @ matrix`` as a convolution with the columns of ``matrix``."""
    kernels, last = (matrix[..., :-1, :], matrix[..., -1:, :]) if bias else (matrix, None)
    kernels = kernels.expand(module.groups, *kernels.shape[-2:]).transpose(1, 2).flatten(0, 1)
    kernels = kernels.reshape(len(kernels), *module.weight.shape[1:]).to(inputs)
    product = _CONVOLVE[len(module.kernel_size)](
        _padded(module, inputs.flatten(0, 1)),
        kernels,
        stride=module.stride,
        dilation=module.dilation,
        groups=module.groups,
    )
    product = _per_group(module.groups, product.flatten(2).unflatten(0, inputs.shape[:2]))
    if last is None:
        return product
    return product + (last if last.ndim == 2 else last.unsqueeze(0)).to(inputs)


def _per_group(groups: int, tensor: Tensor) -> Tensor:
    """Return ``(example, group, rows * space, side)`` from ``(example, rows, group * side, space)``."""
    parted: Tensor = tensor.unflatten(2, (groups, -1)).permute(0, 2, 1, 4, 3)
    return parted.flatten(2, 3)


def _folded(module: Layer, tensor: Tensor) -> Tensor:
    """Return ``(example, rows, channel, space...)`` also for an input without a batch axis."""
    return tensor.unsqueeze(1) if tensor.ndim == 2 + len(module.kernel_size) else tensor


def _padded(module: Layer, images: Tensor) -> Tensor:
    """Return ``images`` padded as the layer pads them, so that no rule of padding is left."""
    sides = [_padding(module, axis) for axis in range(len(module.kernel_size))]
    amounts = [amount for side in reversed(sides) for amount in side]
    if not any(amounts):
        return images
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(images, amounts, mode=mode)


def _padding(module: Layer, axis: int) -> tuple[int, int]:
    """Return the padding before and after one space axis."""
    if module.padding == "valid":
        return 0, 0
    if module.padding == "same":
        total = module.dilation[axis] * (module.kernel_size[axis] - 1)
        return total // 2, total - total // 2
    return module.padding[axis], module.padding[axis]


def _windows(module: Layer, images: Tensor) -> Tensor:
    """Return a view ``(image, channel, kernel..., output position...)``; nothing is copied."""
    rank = len(module.kernel_size)
    for axis, size in enumerate(module.kernel_size):
        span = (size - 1) * module.dilation[axis] + 1
        images = images.unfold(2 + axis, span, module.stride[axis])
        images = images[..., :: module.dilation[axis]]
    kernel, space = range(2 + rank, 2 + 2 * rank), range(2, 2 + rank)
    return images.permute(0, 1, *kernel, *space)
