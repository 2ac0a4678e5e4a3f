"""What every codec does with the energies of the coordinates before it plans."""

import torch
from torch import Tensor

from streamfluence.errors import InputError


def checked_energies(energies: Tensor) -> Tensor:
    """Return ``energies`` as float64 on the CPU, shape ``(feature,)``.

    Raises:
        InputError: If there are none, or one is negative or not finite.
    """
    energies = energies.detach().to("cpu", torch.float64)
    if energies.ndim != 1 or len(energies) == 0:
        raise InputError(
            f"a codec is planned from one energy per coordinate, got shape {tuple(energies.shape)}"
        )
    bad = ~(torch.isfinite(energies) & (energies >= 0))
    if bad.any():
        raise InputError(
            f"{int(bad.sum())} of {len(energies)} energies are negative or not finite (the first "
            f"is coordinate {int(bad.nonzero()[0])}); check the curvature and its damping"
        )
    return energies


def by_energy(energies: Tensor) -> Tensor:
    """Return coordinates by descending energy, ties by position, shape ``(feature,)``, int64."""
    return torch.sort(energies, descending=True, stable=True).indices


def energy_lost(kept: Tensor, energies: Tensor) -> Tensor:
    """Return 1 - kept / all energy, shape ``(1,)``, float64; 0 where there is no energy at all."""
    total = energies.sum()
    return ((total - kept) / torch.where(total > 0, total, 1.0)).clamp_min(0.0).reshape(1)
