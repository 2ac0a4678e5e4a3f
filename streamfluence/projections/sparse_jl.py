"""Sparse Johnson-Lindenstrauss projection: every gradient entry goes to a few hashed features."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from streamfluence.capture.base import Block, Uses
from streamfluence.errors import InputError
from streamfluence.projections._random import slots
from streamfluence.projections._tiles import Tile, cut_tiles
from streamfluence.projections._uses import batch
from streamfluence.projections.base import Part, Projection

_TILE_ENTRIES = 1 << 21


class SparseJl(Projection):
    """Each coordinate is added, with a random sign, to ``copies`` features chosen by a hash.

    The cost follows the number of gradient entries, not the width. On CUDA the order of
    the additions is not fixed, so rows may differ there in the last bits.

    Args:
        copies: Features that each coordinate reaches, each with weight ``copies ** -0.5``.
        cache_bytes: The tables (12 bytes an entry and copy) are kept between batches when
            they are not larger than this.

    Source:
        Kane and Nelson, Sparser Johnson-Lindenstrauss Transforms, https://arxiv.org/abs/1012.1577.
    """

    unbiased = True

    def __init__(
        self,
        blocks: Sequence[Block],
        width: int,
        seed: int,
        *,
        copies: int = 1,
        cache_bytes: int = 1 << 29,
    ) -> None:
        super().__init__(blocks, width, seed)
        if copies < 1:
            raise InputError(f"sparse_jl needs copies >= 1, got {copies}")
        total = sum(block.size for block in self.blocks)
        self._width, self._copies = min(width, total), copies
        self._tiles = cut_tiles(self.blocks, _TILE_ENTRIES)
        self._keep = 12 * total * copies <= cache_bytes
        self._cache: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    @property
    def parts(self) -> tuple[Part, ...]:
        """One part: the features mix all blocks."""
        return (Part("all", self._width),)

    def apply(self, uses: Uses) -> Tensor:
        """Return features, shape ``(example, feature)``, float32."""
        examples, device = batch(uses)
        # Features lead: adding whole rows of examples is 3 times as fast as adding columns.
        features = torch.zeros(self._width, examples, device=device)
        for number, tile in enumerate(self._tiles):
            if block_uses := uses.get(tile.block.name):
                gradient = tile.gradient(block_uses)
                for copy in range(self._copies):
                    slot, sign = self._table(number, tile, copy, device)
                    features.index_add_(0, slot, (gradient * sign).T)
        return features.T.contiguous()

    def facts(self) -> dict[str, Any]:
        """Return whether the tables are kept or hashed again for every batch."""
        return {"tables_cached": self._keep}

    def _table(
        self, number: int, tile: Tile, copy: int, device: torch.device | str
    ) -> tuple[Tensor, Tensor]:
        if (number, copy, device) in self._cache:
            return self._cache[number, copy, device]
        seed = self.seed * self._copies + copy
        slot, sign = slots(seed, tile.coordinates(device), self._width)
        table = slot, sign * self._copies**-0.5
        if self._keep:
            self._cache[number, copy, device] = table
        return table
