"""A dense random matrix applied to the whole gradient, generated tile by tile."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from streamfluence.capture.base import Block, Uses
from streamfluence.projections._tiles import Tile, cut_tiles
from streamfluence.projections._uses import batch
from streamfluence.projections.base import Part, Projection

_TILE_ENTRIES = 1 << 22  # 16 MiB of float32, and a few times that while it is generated


class RandomMatrix(Projection):
    """Base of the projections whose entries are independent, with mean 0 and variance 1/width.

    Args:
        cache_bytes: The matrix is kept between batches when it is not larger than this;
            otherwise its tiles are generated again for every batch, which is slow.

    Source:
        Achlioptas, Database-friendly random projections: Johnson-Lindenstrauss with binary coins,
        https://doi.org/10.1016/S0022-0000(03)00025-4.
    """

    unbiased = True

    def __init__(
        self, blocks: Sequence[Block], width: int, seed: int, *, cache_bytes: int = 1 << 29
    ) -> None:
        super().__init__(blocks, width, seed)
        total = sum(block.size for block in self.blocks)
        self._width = min(width, total)
        self._tiles = cut_tiles(self.blocks, max(1, _TILE_ENTRIES // self._width))
        self._keep = 4 * total * self._width <= cache_bytes
        self._cache: dict[tuple[int, torch.device], Tensor] = {}

    def entries(self, coordinates: Tensor, width: int) -> Tensor:
        """Return the rows of the matrix at ``coordinates`` before scaling, variance 1."""
        raise NotImplementedError

    @property
    def parts(self) -> tuple[Part, ...]:
        """One part: a dense projection mixes all blocks."""
        return (Part("all", self._width),)

    def apply(self, uses: Uses) -> Tensor:
        """Return features, shape ``(example, feature)``, float32."""
        examples, device = batch(uses)
        features = torch.zeros(examples, self._width, device=device)
        for number, tile in enumerate(self._tiles):
            if block_uses := uses.get(tile.block.name):
                features.addmm_(tile.gradient(block_uses), self._matrix(number, tile, device))
        return features

    def facts(self) -> dict[str, Any]:
        """Return whether the matrix is kept or generated again for every batch."""
        return {"matrix_cached": self._keep}

    def _matrix(self, number: int, tile: Tile, device: torch.device) -> Tensor:
        if (number, device) in self._cache:
            return self._cache[number, device]
        matrix = self.entries(tile.coordinates(device), self._width).mul_(self._width**-0.5)
        if self._keep:
            self._cache[number, device] = matrix
        return matrix
