"""Contract of a curvature: a damped, block-diagonal second-order matrix in feature space.

A state is additive: float64 sums of outer products, one square block per part.
Laws: merge of parts equals the whole; ``solve`` is linear, symmetric and
positive; ``whiten`` times its transpose is ``solve``; full rank is exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from streamfluence.linalg import State, symmetric_eigen

# Of what damping adds: the least that is expected of a query. LDS is the same with .01 to .2.
_FLOOR = 0.1


@dataclass(frozen=True)
class Factor:
    """Eigen-decomposition of the curvature and the damping of each block.

    Attributes:
        vectors: One orthogonal float64 matrix per block, columns are eigenvectors.
        values: Eigenvalues of all blocks in order, shape ``(feature,)``, float64.
        damping: Of each coordinate, shape ``(feature,)``, float64.
        lean: What a whitened row is multiplied by before it is turned, and a query divided by, so that
            their product stays; shape ``(feature,)``, float64.
        turns: Orthogonal matrices that turn both after that, one a block; or none.
    """

    vectors: tuple[Tensor, ...]
    values: Tensor
    damping: Tensor
    lean: Tensor
    turns: tuple[Tensor, ...] = ()

    def rotate(self, rows: Tensor) -> Tensor:
        """Return ``rows @ V``, shape ``(example, feature)``, in the rows' dtype and device."""
        return self._blockwise(rows, list(self.vectors))

    def whiten(self, rows: Tensor) -> Tensor:
        """Return ``(values + damping)^(-1/2) V^T row`` for every row."""
        return self.rotate(rows) * (self.values + self.damping).rsqrt().to(rows)

    def stored(self, whitened: Tensor) -> Tensor:
        """Return whitened rows in the coordinates in which they are stored."""
        return self._blockwise(whitened * self.lean.to(whitened), list(self.turns))

    def asked(self, whitened: Tensor) -> Tensor:
        """Return whitened queries so that ``<asked(y_q), stored(y_i)> = <y_q, y_i>``."""
        return self._blockwise(whitened / self.lean.to(whitened), list(self.turns))

    def solve(self, rows: Tensor) -> Tensor:
        """Return ``(H + damping)^(-1) row`` for every row, in the original coordinates."""
        solved = self.rotate(rows) / (self.values + self.damping).to(rows)
        return self._blockwise(solved, [basis.T for basis in self.vectors])

    def redamp(self, asked: Tensor, damping: Tensor | float) -> Tensor:
        """Return what was ``asked``, so that its product with stored rows uses another damping.

        ``<redamp(asked(y_q)), stored(y_i)> = phi_q^T (H + damping)^(-1) phi_i`` for rows and queries
        whitened with this factor.
        """
        straight = self._blockwise(asked, [turn.T for turn in self.turns])
        ratio = (self.values + self.damping) / (self.values + damping)
        return self._blockwise(straight * ratio.to(straight), list(self.turns))

    def turned(self, moments: Sequence[Tensor]) -> "tuple[Factor, Tensor]":
        """Return the factor that stores rows where few coordinates hold most of what queries ask for.

        Queries are gradients of examples that were not trained on, and of those the curvature is
        the mean, so a whitened query has about the energy ``values / (values + damping)`` in each
        direction. Rows are multiplied by its root, queries divided, and the coordinates are the
        principal components of those rows: no linear map to fewer coordinates keeps more of the
        products. LDS of one model on nets a, b, c and e1 of the benchmark, and below it with
        whitened rows turned to their own components:

                          64 bytes                       128                           256
            leaning       .771 .520 .376 .723            .796 .535 .416 .737           .803 .536 .465 .740
            straight      .764 .514 .379 .718            .794 .533 .415 .736           .802 .536 .460 .739

        Args:
            moments: Mean of row row^T before whitening, one square matrix a block.

        Returns:
            The factor, and the energy of each coordinate, shape ``(feature,)``, float64: the root of
            that of rows, that of queries being about 1.

        Source:
            Half-whitened principal components: Proposition of EOGP (2026), there with EK-FAC.
        """
        turns, energies = [], []
        lean = ((self.values + _FLOOR * self.damping) / (self.values + self.damping)).sqrt()
        scale = lean * (self.values + self.damping).rsqrt()
        widths = [len(basis) for basis in self.vectors]
        for basis, moment, part in zip(self.vectors, moments, scale.split(widths), strict=True):
            leaning = basis * part
            rows, turn = symmetric_eigen(leaning.T @ moment.to(leaning) @ leaning)
            turns.append(turn)
            energies.append(rows.sqrt())
        return replace(self, lean=lean, turns=tuple(turns)), torch.cat(energies)

    def effective_dimension(self) -> list[float]:
        """Return sum of value / (value + damping) of each block."""
        share = self.values / (self.values + self.damping)
        return [float(part.sum()) for part in share.split([len(v) for v in self.vectors])]

    def to(self, device, dtype=torch.float32) -> "Factor":
        """Return the factor ready to whiten rows on ``device``; spectra stay float64."""
        vectors, turns = (
            tuple(matrix.to(device=device, dtype=dtype) for matrix in matrices)
            for matrices in (self.vectors, self.turns)
        )
        values, damping, lean = (s.to(device) for s in (self.values, self.damping, self.lean))
        return Factor(vectors, values, damping, lean, turns)

    def _blockwise(self, rows: Tensor, bases: list[Tensor]) -> Tensor:
        """Return every block of ``rows`` times its matrix; no matrices means the identity."""
        if not bases:
            return rows
        blocks = rows.split([len(basis) for basis in bases], dim=1)
        return torch.cat([b @ m.to(b) for b, m in zip(blocks, bases, strict=True)], dim=1)


class Curvature:
    """Base of every curvature.

    Attributes:
        source: Which vectors feed ``update``: ``probes`` (output-space probes pushed back through
            the Jacobian), ``loss`` (per-example loss gradients) or None (nothing is needed).
        default_scale: Default damping as a multiple of a block's mean eigenvalue over all its weights.
    """

    source: str | None = None
    default_scale = 0.0

    def empty(self, widths: Sequence[int]) -> State:
        """Return the state of no examples for blocks of these widths."""
        raise NotImplementedError

    def update(self, state: State, rows: Tensor, weight: float = 1.0) -> State:
        """Return ``state`` plus ``weight * row row^T`` over ``rows``, shape ``(example, feature)``."""
        raise NotImplementedError

    def merge(self, a: State, b: State) -> State:
        """Return the state of both parts together."""
        raise NotImplementedError

    def factor(
        self,
        state: State,
        examples: float,
        damping: float | None,
        weights: Sequence[int] | None = None,
    ) -> Factor:
        """Return the factor of ``state / examples`` (a mean over examples, not a sum).

        Args:
            damping: One value for all blocks, in the unit of the eigenvalues; None takes
                ``default_scale`` times each block's mean eigenvalue.
            weights: How many weights each block stands for, over which the mean is taken; by default
                its width. A mean over the kept directions would move with their number.
        """
        raise NotImplementedError

    def energies(self, state: State, factor: Factor, examples: float) -> Tensor:
        """Return the expected square of each whitened coordinate, shape ``(feature,)``, float64."""
        return factor.values / (factor.values + factor.damping)
