"""What preconditioners share that know every eigenvalue of the curvature; members say in which basis."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from streamfluence.preconditioners.base import Preconditioner

# Of what damping adds: the least that is expected of a query. LDS is the same with .01 to .2.
FLOOR = 0.1


@dataclass(frozen=True)
class Spectrum(Preconditioner):
    """Eigenvalues of all blocks, and the damping of each coordinate.

    Attributes:
        values: Eigenvalues of all blocks in order, shape ``(feature,)``, float64.
        damping: Of each coordinate, shape ``(feature,)``, float64.
        half_whitening: What a whitened row is multiplied by before it is rotated, and a query
            divided by, so that their product stays; shape ``(feature,)``, float64.
        widths: Features of each block; none where there is no curvature.
    """

    values: Tensor
    damping: Tensor
    half_whitening: Tensor
    widths: tuple[int, ...]

    @property
    def width(self) -> int:
        """Number of features of a row."""
        return len(self.values)

    def whiten(self, rows: Tensor) -> Tensor:
        """Return ``(values + damping)^(-1/2) V^T row`` for every row."""
        return self._into_basis(rows) * (self.values + self.damping).rsqrt().to(rows)

    def for_rows(self, whitened: Tensor) -> Tensor:
        """Return whitened rows in the coordinates in which they are stored."""
        return self._rotated(whitened * self.half_whitening.to(whitened))

    def for_queries(self, whitened: Tensor) -> Tensor:
        """Return whitened queries so that ``<for_queries(y_q), for_rows(y_i)> = <y_q, y_i>``."""
        return self._rotated(whitened / self.half_whitening.to(whitened))

    def redamp(self, queries: Tensor, damping: Tensor | float) -> Tensor:
        """Return what ``for_queries`` gave, so that its product with stored rows uses another damping."""
        straight = self._rotated_back(queries)
        ratio = (self.values + self.damping) / (self.values + damping)
        return self._rotated(straight * ratio.to(straight))

    def solve(self, rows: Tensor) -> Tensor:
        """Return ``(H + damping)^(-1) row`` for every row, in the original coordinates."""
        solved = self._into_basis(rows) / (self.values + self.damping).to(rows)
        return self._out_of_basis(solved)

    def energies(self) -> Tensor:
        """Return the expected square of each whitened coordinate of the curvature's own vectors, float64."""
        return self.values / (self.values + self.damping)

    def facts(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return name, width, damping, mean eigenvalue and effective dimension of every block."""
        if not self.widths:
            return []
        columns = zip(
            names,
            self.widths,
            (float(block[0]) for block in self._blocks(self.damping)),
            (float(block.mean()) for block in self._blocks(self.values)),
            self.effective_dimension(),
            strict=True,
        )
        return [
            {"name": n, "width": w, "damping": d, "mean_eigenvalue": m, "effective_dimension": e}
            for n, w, d, m, e in columns
        ]

    def effective_dimension(self, damping: float | None = None) -> list[float]:
        """Return sum of value / (value + damping) of each block, of its own damping or another."""
        share = self.values / (self.values + (self.damping if damping is None else damping))
        return [float(part.sum()) for part in self._blocks(share)]

    def _blocks(self, features: Tensor) -> Sequence[Tensor]:
        return features.split(list(self.widths)) if self.widths else ()

    def _most_of_queries(self) -> Tensor:
        """Return the root of the energy that whitened queries have in each direction.

        Queries are gradients of examples that were not trained on, and of those the curvature is
        the mean, so it is about ``values / (values + damping)``.
        """
        return ((self.values + FLOOR * self.damping) / (self.values + self.damping)).sqrt()

    def _into_basis(self, rows: Tensor) -> Tensor:
        return rows

    def _out_of_basis(self, rows: Tensor) -> Tensor:
        return rows

    def _rotated(self, rows: Tensor) -> Tensor:
        return rows

    def _rotated_back(self, rows: Tensor) -> Tensor:
        return rows
