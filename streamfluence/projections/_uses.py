"""What every projection asks of a batch of captured gradients."""

from typing import ClassVar

import torch
from torch import Tensor

from streamfluence.capture.base import Dense, Indexed, Outer, Use, Uses


def batch(uses: Uses) -> tuple[int, torch.device]:
    """Return the number of examples and the device of a batch."""
    use = next(use for block_uses in uses.values() for use in block_uses)
    tensor = use.gradient if isinstance(use, Dense) else use.right
    return len(tensor), tensor.device


def as_float(use: Use) -> Use:
    """Return ``use`` in float32, so that sums over positions are not rounded to half precision."""
    if isinstance(use, Dense):
        return Dense(use.gradient.float())
    if isinstance(use, Indexed):
        return Indexed(use.index, use.right.float())
    return Outer(use.left.float(), use.right.float())


def as_needed(use: Use) -> Use:
    """Return what `as_float` does, but make a side only when it is read, and anew every time.

    A convolution's inputs times a few columns is a small convolution; the unfolded inputs,
    nine times as large for a kernel of 3 x 3, are then never made.
    """
    return _OnDemand(use) if isinstance(use, Outer) else as_float(use)


class _OnDemand(Outer):
    """An `Outer` in float32 over another one."""

    _use: ClassVar  # an instance's own; a frozen dataclass gives it no field

    def __init__(self, use: Outer) -> None:
        object.__setattr__(self, "_use", use)

    @property
    def left(self) -> Tensor:
        return self._use.left.float()

    @property
    def right(self) -> Tensor:
        return self._use.right.float()

    @property
    def half(self) -> bool:
        return self._use.half

    def left_times(self, matrix: Tensor) -> Tensor:
        return self._use.left_times(matrix).float()

    def right_times(self, matrix: Tensor) -> Tensor:
        return self._use.right_times(matrix).float()


def place(tensors: dict[str, Tensor], device) -> dict[str, Tensor]:
    """Return the same tensors on ``device``."""
    return {key: value.to(device) for key, value in tensors.items()}
