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

    @property
    def _tolerance(self) -> float:
        return _TF32 if self.cuda and self.dtype == torch.float32 else _TOLERANCE[self.dtype]

    def allowed(self, scale: float, whole: float) -> float:
        """Return the largest error of a gradient that rounding explains.

        Args:
            scale: Norm of what is compared.
            whole: Norm of all of which it is a part.
        """
        return self._tolerance * scale + _FLOOR[self.dtype] * whole

    def close(self, found: Tensor, expected: Tensor, size: float) -> bool:
        """Return whether outputs of some examples agree but for rounding.

        Rounding goes with the largest number of each example, and a little with ``size``: what is
        near 0 may be a difference of numbers of that size.

        Args:
            found, expected: The examples first.
        """
        if not expected.numel():
            return True
        found, expected = _flat(found.to(expected.dtype)), _flat(expected)
        share, floor = self._of_outputs()
        limit = share * _magnitudes(expected) + floor * size
        near = (found - expected).abs() <= limit[:, None]
        return bool((near | (found == expected) | (found.isnan() & expected.isnan())).all())

    def same_loss(self, found: Tensor, expected: Tensor, size: float) -> bool:
        """Return whether a loss, or its gradient, is the same on the same outputs.

        Args:
            size: Of the numbers that it is computed from.
        """
        rounding = 16 * torch.finfo(expected.dtype).eps * size
        limit = self._tolerance * largest(expected) + rounding
        return torch.allclose(found.to(expected.dtype), expected, 0, limit, equal_nan=True)

    def _of_outputs(self) -> tuple[float, float]:
        """Return the error of outputs as a share of an example's own largest, and of others."""
        if self.dtype in (torch.float32, torch.float64) and not self.cuda:
            # Where arithmetic is exact, outputs are known better than gradients.
            return self._tolerance / 100, 5 * _FLOOR[self.dtype]
        return self._tolerance, self._tolerance / 4


def largest(tensor: Tensor) -> float:
    """Return the largest finite magnitude."""
    return float(_finite(tensor.detach()).max()) if tensor.numel() else 0.0


def _magnitudes(tensor: Tensor) -> Tensor:
    """Return the largest finite magnitude of each example."""
    return _finite(_flat(tensor)).amax(1)


def _finite(tensor: Tensor) -> Tensor:
    return tensor.abs().nan_to_num(0.0, 0.0, 0.0)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(len(tensor), -1)


def norm(tensors: Iterable[Tensor]) -> float:
    """Return the Euclidean norm of all tensors together."""
    return float(sum(_norm(tensor) ** 2 for tensor in tensors) ** 0.5)


def _norm(tensor: Tensor) -> float:
    """Return one norm; in double precision, which is slow, only where squares leave the range."""
    kind = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    found = float(torch.linalg.vector_norm(tensor, dtype=kind))
    if 1e-15 < found < 1e15:
        return found
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
