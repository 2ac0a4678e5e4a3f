"""The first entries of the gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor

from streamfluence.capture.base import Block, Uses, dense_gradient
from streamfluence.projections._uses import batch
from streamfluence.projections.base import Part, Projection


class LeadingEntries(Projection):
    """As many of the gradient's first entries as features are wanted, times a number.

    Args:
        scale: The number.
    """

    def __init__(
        self, blocks: Sequence[Block], width: int, seed: int, *, scale: float = 1.0
    ) -> None:
        super().__init__(blocks, width, seed)
        self._scale = scale
        self._kept = min(width, sum(block.size for block in self.blocks))

    @property
    def parts(self) -> tuple[Part, ...]:
        return (Part("all", self._kept),)

    def apply(self, uses: Uses) -> Tensor:
        examples, device = batch(uses)
        pieces = [torch.zeros(examples, block.size, device=device) for block in self.blocks]
        for place, block in enumerate(self.blocks):
            if block_uses := uses.get(block.name):
                floats = [use.float() for use in block_uses]
                pieces[place] = dense_gradient(block, floats).flatten(1)
        return torch.cat(pieces, dim=1)[:, : self._kept] * self._scale
