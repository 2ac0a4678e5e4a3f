"""One number a coordinate: linear in the width, in memory and in work."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from streamfluence.linalg import State
from streamfluence.preconditioners._spectrum import Spectrum


@dataclass(frozen=True)
class Diagonal(Spectrum):
    """Divides every coordinate by the root of its own curvature and damping, and rotates nothing."""

    name = "diagonal"
    couples = False

    @classmethod
    def of(cls, values: Tensor, damping: Tensor, widths: Sequence[int] = ()) -> "Diagonal":
        """Return the preconditioner of these values, without half-whitening.

        Args:
            widths: Features of each block; none where there is no curvature to speak of.
        """
        return cls(values, damping, torch.ones_like(values), tuple(widths))

    @classmethod
    def from_state(cls, state: State) -> "Diagonal":
        """Return the preconditioner that gave this ``state``."""
        widths = tuple(state["widths"].tolist())
        return cls(state["values"], state["damping"], state["half_whitening"], widths)

    def state(self) -> State:
        """Return spectra by name, and the widths of the blocks."""
        return {
            "values": self.values,
            "damping": self.damping,
            "half_whitening": self.half_whitening,
            "widths": torch.tensor(self.widths, dtype=torch.int64),
        }

    def half_whitened(self, moments: Sequence[Tensor]) -> "tuple[Diagonal, Tensor]":
        """Return the preconditioner that multiplies rows by the root of what queries ask for.

        Args:
            moments: Mean square of every feature of a row before whitening, one vector a block.

        Returns:
            The preconditioner, and the energy of each coordinate, shape ``(feature,)``, float64: the
            root of that of rows, that of queries being about 1.
        """
        half = self._most_of_queries()
        scale = half * (self.values + self.damping).rsqrt()
        energies = scale * torch.cat(list(moments)).to(scale).sqrt()
        return replace(self, half_whitening=half), energies

    def to(self, device: Any, dtype: torch.dtype = torch.float32) -> "Diagonal":
        """Return the preconditioner ready to whiten rows on ``device``; spectra stay float64."""
        values, damping, half = (
            spectrum.to(device) for spectrum in (self.values, self.damping, self.half_whitening)
        )
        return Diagonal(values, damping, half, self.widths)
