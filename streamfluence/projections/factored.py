"""Random projection of both sides of every block, as in LoGra: the gradient is never formed."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from streamfluence.capture.base import Block, Use, Uses
from streamfluence.errors import InputError
from streamfluence.projections._random import gaussians
from streamfluence.projections._uses import batch
from streamfluence.projections.base import Part, Projection


@dataclass(frozen=True)
class _Factors:
    """Thin matrices of one block; ``group`` mixes groups where there are more groups than features."""

    left: Tensor
    right: Tensor
    group: Tensor | None

    @property
    def width(self) -> int:
        groups = 1 if self.group is None else self.group.shape[1]
        return groups * self.left.shape[2] * self.right.shape[2]


class Factored(Projection):
    """Features ``P_left^T G P_right`` of every block, with Gaussian thin matrices.

    The width is shared over blocks in proportion to the square root of their sizes. A block
    not larger than its share is kept whole, and a side that need not shrink is not mixed.
    Groups use the same matrices and are kept apart, unless a block has more groups than its
    share of features: then the groups are mixed by a third Gaussian matrix. A block's
    features are a rectangle, so the row may be a little shorter than ``width``.

    Source:
        Choe et al., What is Your Data Worth to GPT? LLM-Scale Data Valuation with Influence Functions,
        https://arxiv.org/abs/2405.13954 (LoGra); here with independent random factors.
    """

    unbiased = True

    def __init__(self, blocks: Sequence[Block], width: int, seed: int) -> None:
        super().__init__(blocks, width, seed)
        if width < len(self.blocks):
            raise InputError(
                f"the factored projection needs at least one feature for each of the "
                f"{len(self.blocks)} blocks, but width is {width}; raise the width"
            )
        shares = share_width([block.size for block in self.blocks], width)
        self._factors = [
            _factors(block, share, seed, number)
            for number, (block, share) in enumerate(zip(self.blocks, shares, strict=True))
        ]

    @property
    def parts(self) -> tuple[Part, ...]:
        """One part per block."""
        return tuple(
            Part(block.name, factors.width * (block.groups if factors.group is None else 1))
            for block, factors in zip(self.blocks, self._factors, strict=True)
        )

    def to(self, device: torch.device | str) -> "Factored":
        """Return the projection with its matrices on ``device``."""
        self._factors = [
            _Factors(
                f.left.to(device),
                f.right.to(device),
                f.group if f.group is None else f.group.to(device),
            )
            for f in self._factors
        ]
        return self

    def apply(self, uses: Uses) -> Tensor:
        """Return features, shape ``(example, feature)``, float32; a block is (group, row, column)."""
        examples, device = batch(uses)
        features = torch.zeros(examples, sum(part.width for part in self.parts), device=device)
        start = 0
        for part, factors in zip(self.parts, self._factors, strict=True):
            stop = start + part.width
            for use in uses.get(part.name, ()):
                features[:, start:stop] += _project(use, factors)
            start = stop
        return features


def share_width(sizes: Sequence[int], width: int) -> list[int]:
    """Return how many features each block gets: proportional to sqrt(size), at least 1, at most its size."""
    shares = [0] * len(sizes)
    left, free = width, sorted(range(len(sizes)), key=lambda number: sizes[number])
    # Smallest first: what a small block cannot use goes to the larger ones after it.
    while free:
        number = free.pop(0)
        total = sum(sizes[other] ** 0.5 for other in [number, *free])
        fair = int(left * sizes[number] ** 0.5 / total)
        shares[number] = max(1, min(sizes[number], fair, left - len(free)))
        left -= shares[number]
    return shares


def _factors(block: Block, share: int, seed: int, number: int) -> _Factors:
    each = share // block.groups
    if each == 0:
        return _Factors(
            _thin(block.left, 1, seed, 3 * number),
            _thin(block.right, 1, seed, 3 * number + 1),
            _thin(block.groups, share, seed, 3 * number + 2)[0],
        )
    rows, columns = _rectangle(block.left, block.right, each)
    left = _thin(block.left, rows, seed, 3 * number)
    return _Factors(left, _thin(block.right, columns, seed, 3 * number + 1), None)


def _rectangle(left: int, right: int, entries: int) -> tuple[int, int]:
    """Return rows and columns, as square as the sides allow, of at most ``entries`` entries."""
    rows = min(left, isqrt(entries))
    columns = min(right, entries // rows)
    return min(left, entries // columns), columns


def _thin(side: int, columns: int, seed: int, stream: int) -> Tensor:
    """Return a matrix ``(1, side, columns)`` with E[P P^T] = I; the identity where nothing shrinks."""
    if columns == side:
        return torch.eye(side).unsqueeze(0)
    counters = torch.arange(side) + (stream << 40)
    return gaussians(seed, counters, columns).mul_(columns**-0.5).unsqueeze(0)


def _project(use: Use, factors: _Factors) -> Tensor:
    features = use.float_on_demand().between(factors.left, factors.right)
    if factors.group is not None:
        features = torch.einsum("ekab,kg->egab", features, factors.group)
    return features.flatten(1)
