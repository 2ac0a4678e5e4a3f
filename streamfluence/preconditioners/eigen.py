"""Eigenvectors and eigenvalues of dense blocks: exact, quadratic in the width of a block."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from streamfluence.linalg import State, numbered, symmetric_eigen
from streamfluence.preconditioners._spectrum import Spectrum


@dataclass(frozen=True)
class Eigen(Spectrum):
    """Rotates rows to eigenvectors of each block, whitens them there, and may rotate them once more.

    Attributes:
        vectors: One orthogonal float64 matrix a block, columns are eigenvectors.
        rotations: Orthogonal matrices that turn rows and queries after half-whitening, one a block; or none.
    """

    name = "eigen"
    vectors: tuple[Tensor, ...]
    rotations: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, values: Tensor, vectors: Sequence[Tensor], damping: Tensor) -> "Eigen":
        """Return the preconditioner of these eigenpairs, without half-whitening."""
        widths = tuple(len(basis) for basis in vectors)
        return cls(values, damping, torch.ones_like(values), widths, tuple(vectors))

    @classmethod
    def from_state(cls, state: State) -> "Eigen":
        """Return the preconditioner that gave this ``state``."""
        vectors, rotations = (tuple(numbered(state, key)) for key in ("vectors", "rotations"))
        widths = tuple(len(basis) for basis in vectors)
        return cls(
            state["values"], state["damping"], state["half_whitening"], widths, vectors, rotations
        )

    def state(self) -> State:
        """Return spectra by name, and the matrices of every block by its number."""
        return {
            **{f"vectors/{i}": basis for i, basis in enumerate(self.vectors)},
            **{f"rotations/{i}": rotation for i, rotation in enumerate(self.rotations)},
            "values": self.values,
            "damping": self.damping,
            "half_whitening": self.half_whitening,
        }

    def half_whitened(self, moments: Sequence[Tensor]) -> "tuple[Eigen, Tensor]":
        """Return the preconditioner that stores rows in their principal components, half-whitened.

        Rows are multiplied by the root of the energy that queries have in each direction, queries
        divided, and the coordinates are the principal components of those rows: no linear map to
        fewer coordinates keeps more of the products. LDS of one model of the digits MLP, the digits
        convolutional net, the code transformer and the digits MLP under momentum, and below it with
        whitened rows rotated to their own components:

                          64 bytes                       128                           256
            half          .771 .520 .376 .723            .796 .535 .416 .737           .803 .536 .465 .740
            whole         .764 .514 .379 .718            .794 .533 .415 .736           .802 .536 .460 .739

        Args:
            moments: Mean of row row^T before whitening, one square matrix a block.

        Returns:
            The preconditioner, and the energy of each coordinate, shape ``(feature,)``, float64: the
            root of that of rows, that of queries being about 1.

        Source:
            Half-whitened principal components: a proposition of Eigenbasis-corrected One-bit Gradient
            Projection (2026), there of the coordinates of EK-FAC.
        """
        rotations, energies = [], []
        half = self._most_of_queries()
        scale = half * (self.values + self.damping).rsqrt()
        for basis, moment, part in zip(self.vectors, moments, self._blocks(scale), strict=True):
            scaled = basis * part
            rows, rotation = symmetric_eigen(scaled.T @ moment.to(scaled) @ scaled)
            rotations.append(rotation)
            energies.append(rows.sqrt())
        made = replace(self, half_whitening=half, rotations=tuple(rotations))
        return made, torch.cat(energies)

    def to(self, device: Any, dtype: torch.dtype = torch.float32) -> "Eigen":
        """Return the preconditioner ready to whiten rows on ``device``; spectra stay float64."""
        vectors, rotations = (
            tuple(matrix.to(device=device, dtype=dtype) for matrix in matrices)
            for matrices in (self.vectors, self.rotations)
        )
        values, damping, half = (
            spectrum.to(device) for spectrum in (self.values, self.damping, self.half_whitening)
        )
        return Eigen(values, damping, half, self.widths, vectors, rotations)

    def _into_basis(self, rows: Tensor) -> Tensor:
        return self._times(rows, self.vectors)

    def _out_of_basis(self, rows: Tensor) -> Tensor:
        return self._times(rows, [basis.T for basis in self.vectors])

    def _rotated(self, rows: Tensor) -> Tensor:
        return self._times(rows, self.rotations)

    def _rotated_back(self, rows: Tensor) -> Tensor:
        return self._times(rows, [rotation.T for rotation in self.rotations])

    def _times(self, rows: Tensor, matrices: Sequence[Tensor]) -> Tensor:
        """Return every block of ``rows`` times its matrix; no matrices means the identity."""
        if not matrices:
            return rows
        blocks = zip(rows.split(list(self.widths), dim=1), matrices, strict=True)
        return torch.cat([block @ matrix.to(block) for block, matrix in blocks], dim=1)
