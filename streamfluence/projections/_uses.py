"""What every projection asks of a batch of captured gradients."""

import torch
from torch import Tensor

from streamfluence.capture.base import Uses


def batch(uses: Uses) -> tuple[int, torch.device]:
    """Return the number of examples and the device of a batch."""
    use = next(use for block_uses in uses.values() for use in block_uses)
    tensor = use.tensor
    return len(tensor), tensor.device


def place(tensors: dict[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    """Return the same tensors on ``device``."""
    return {key: value.to(device) for key, value in tensors.items()}
