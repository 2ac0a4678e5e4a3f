"""Shapes and types of outputs, targets and weights, as every likelihood reads them."""

import torch
from torch import Tensor

from streamfluence.errors import InputError


def upcast(outputs: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 stay."""
    return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs


def rows_of(values: Tensor) -> Tensor:
    """Return ``(example, everything else)``."""
    return values.reshape(len(values), -1)


def is_soft(targets: Tensor) -> bool:
    return targets.is_floating_point()


def all_true(targets: Tensor) -> Tensor:
    return torch.ones_like(targets, dtype=torch.bool)


def spread(values: Tensor, shape: torch.Size) -> Tensor:
    """Return values of positions, or one an example, in the shape of the positions."""
    if values.shape == shape:
        return values
    return values.view(len(values), *[1] * (len(shape) - 1)).expand(shape)


def check_weights(weights: Tensor, positions: torch.Size) -> None:
    if weights.shape not in (positions, positions[:1]):
        raise InputError(
            f"weights must have one entry an example {tuple(positions[:1])}, or one a position "
            f"{tuple(positions)}, but forward returned {tuple(weights.shape)}"
        )
    if weights.requires_grad:
        raise InputError("weights must not depend on the model's weights; detach them in forward")
    lowest = float(weights.min()) if weights.numel() else 0.0
    if not (lowest >= 0 and bool(torch.isfinite(weights).all())):
        raise InputError(
            f"weights must be finite and not negative, but the lowest is {lowest:.3g}; a loss with "
            f"negative weights has no Gauss-Newton matrix"
        )


def same_shape(name: str, outputs: Tensor, targets: Tensor) -> None:
    if outputs.shape != targets.shape:
        raise InputError(
            f"a {name} likelihood needs targets of the outputs' shape {tuple(outputs.shape)}, but "
            f"forward returned targets {tuple(targets.shape)}; broadcasting them would be wrong"
        )
