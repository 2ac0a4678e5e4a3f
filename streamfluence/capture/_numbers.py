"""How near two results of the same mathematics have to be, by the precision they were computed in."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
_TF32 = 0.02
# Below this share of the whole a part is rounding: attention's key bias has gradient 0 in truth.
_FLOOR = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


@dataclass(frozen=True)
class Precision:
    """What a model was computed in.

    Attributes:
        dtype: The least precise type of any step.
        cuda: Whether on a CUDA device, whose convolutions are TF32 unless the user says otherwise.
    """

    dtype: torch.dtype
    cuda: bool

    @classmethod
    def of(cls, dtypes: Iterable[torch.dtype], cuda: bool) -> "Precision":
        """Return the precision of a computation that went through all of ``dtypes``."""
        kinds = [kind for kind in dtypes if kind in _TOLERANCE] or [torch.float32]
        return cls(max(kinds, key=lambda kind: torch.finfo(kind).eps), cuda)

    def allowed(self, scale: float, whole: float) -> float:
        """Return the largest error of a gradient that rounding explains.

        Args:
            scale: Norm of what is compared.
            whole: Norm of all of which it is a part.
        """
        tolerance = _TF32 if self.cuda and self.dtype == torch.float32 else _TOLERANCE[self.dtype]
        return tolerance * scale + _FLOOR[self.dtype] * whole

    def close(self, found: Tensor, expected: Tensor, whole: Tensor) -> bool:
        """Return whether outputs agree but for rounding, which goes with the largest of ``whole``."""
        if not expected.numel():
            return True
        scale = float(whole.detach().abs().nan_to_num(0.0, 0.0, 0.0).max())
        # Losses near 0 are differences of numbers of size 1. Where arithmetic is exact, outputs
        # are known better than gradients.
        exact = self.dtype in (torch.float32, torch.float64) and not self.cuda
        limit = self.allowed(scale, max(scale, 1.0)) * (0.1 if exact else 1.0)
        return torch.allclose(
            found.to(expected.dtype), expected, rtol=0, atol=limit, equal_nan=True
        )


def norm(tensors: Iterable[Tensor]) -> float:
    """Return the Euclidean norm of all tensors together."""
    squares = [float(tensor.double().square().sum()) for tensor in tensors]
    return sum(squares) ** 0.5
