"""What every projection asks of a batch of captured gradients."""

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


def place(tensors: dict[str, Tensor], device) -> dict[str, Tensor]:
    """Return the same tensors on ``device``."""
    return {key: value.to(device) for key, value in tensors.items()}
