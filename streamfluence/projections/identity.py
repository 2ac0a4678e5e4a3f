"""The whole gradient, unprojected."""

import torch
from torch import Tensor

from streamfluence.capture.base import Uses, dense_gradient
from streamfluence.projections._uses import batch
from streamfluence.projections.base import Part, Projection


class Identity(Projection):
    """Every gradient entry is a feature; the width asked for does not matter."""

    unbiased = True

    @property
    def parts(self) -> tuple[Part, ...]:
        """One part per block, as wide as the block."""
        return tuple(Part(block.name, block.size) for block in self.blocks)

    def apply(self, uses: Uses) -> Tensor:
        """Return features, shape ``(example, feature)``, float32; a block is (group, left, right)."""
        examples, device = batch(uses)
        pieces = []
        for block in self.blocks:
            if block_uses := uses.get(block.name):
                gradient = dense_gradient(block, [use.float() for use in block_uses])
                pieces.append(gradient.flatten(1))
            else:
                pieces.append(torch.zeros(examples, block.size, device=device))
        return torch.cat(pieces, dim=1)
