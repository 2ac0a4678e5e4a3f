"""Additive second moments of rows, block by block: dense, or of each feature alone."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from streamfluence.linalg import State, add_states, numbered


class Moments:
    """Base: float64 sums over rows, one tensor a block.

    Attributes:
        name: Of the entries of a state, ``name/0`` for the first block.
    """

    name: str

    def empty(self, widths: Sequence[int]) -> State:
        """Return the state of no rows for blocks of these widths."""
        zeros = (self.zeros(width) for width in widths)
        return {f"{self.name}/{number}": block for number, block in enumerate(zeros)}

    def update(self, state: State, rows: Tensor, weight: float = 1.0) -> State:
        """Return ``state`` plus ``weight`` times the moments of ``rows``, shape ``(example, feature)``."""
        blocks = self.blocks(state)
        widths = [len(sums) for sums in blocks]
        assert sum(widths) == rows.shape[1], f"{rows.shape[1]} features for blocks of {widths}"
        added = self.of(rows, widths)
        return {
            f"{self.name}/{number}": sums.to(rows.device) + weight * more
            for number, (sums, more) in enumerate(zip(blocks, added, strict=True))
        }

    def merge(self, a: State, b: State) -> State:
        """Return the state of both parts together."""
        return add_states(a, b)

    def blocks(self, state: State) -> list[Tensor]:
        """Return the sums of every block, in order."""
        return numbered(state, self.name)

    def zeros(self, width: int) -> Tensor:
        """Return the sums of no rows in a block of this width, float64."""
        raise NotImplementedError

    def of(self, rows: Tensor, widths: Sequence[int]) -> Iterable[Tensor]:
        """Return the sums over ``rows``, float64, one a block."""
        raise NotImplementedError


class Gram(Moments):
    """Sums of row row^T: a square matrix a block."""

    name = "gram"

    def zeros(self, width: int) -> Tensor:
        """Return a square matrix."""
        return torch.zeros(width, width, dtype=torch.float64)

    def of(self, rows: Tensor, widths: Sequence[int]) -> Iterable[Tensor]:
        """Yield the sum of outer products of each block."""
        for part in rows.split(list(widths), dim=1):
            # float64 products: the small eigenvalues are what damping is compared with.
            block = part.to(torch.float64)
            yield block.T @ block


class Squares(Moments):
    """Sums of squares: a vector a block, linear in its width."""

    name = "squares"

    def zeros(self, width: int) -> Tensor:
        """Return a vector."""
        return torch.zeros(width, dtype=torch.float64)

    def of(self, rows: Tensor, widths: Sequence[int]) -> Iterable[Tensor]:
        """Return the sum of squares of each feature."""
        parts: Sequence[Tensor] = rows.to(torch.float64).square().sum(0).split(list(widths))
        return parts
