"""Keep some gradient entries, chosen at random."""

from collections.abc import Sequence

import torch
from torch import Tensor

from streamfluence.capture.base import Block, Uses
from streamfluence.projections._random import draw_coordinates
from streamfluence.projections._uses import batch
from streamfluence.projections.base import Part, Projection


class Mask(Projection):
    """``width`` entries of the whole gradient, drawn without replacement, times sqrt(total / width).

    An entry of a layer is a sum over positions of one product: the gradient is never formed.
    """

    unbiased = True

    def __init__(self, blocks: Sequence[Block], width: int, seed: int) -> None:
        super().__init__(blocks, width, seed)
        total = sum(block.size for block in self.blocks)
        kept = draw_coordinates(seed, total, min(width, total))
        self._scale = (total / len(kept)) ** 0.5
        self._chosen: list[tuple[Block, tuple[Tensor, ...]]] = []
        start = 0
        for block in self.blocks:
            here = kept[(kept >= start) & (kept < start + block.size)] - start
            start += block.size
            if len(here):
                self._chosen.append((block, _places(here, block)))

    @property
    def parts(self) -> tuple[Part, ...]:
        """One part per block that has an entry kept."""
        return tuple(Part(block.name, len(places[0])) for block, places in self._chosen)

    def to(self, device: torch.device | str) -> "Mask":
        """Return the projection with its places on ``device``."""
        self._chosen = [(b, tuple(p.to(device) for p in places)) for b, places in self._chosen]
        return self

    def apply(self, uses: Uses) -> Tensor:
        """Return features, shape ``(example, feature)``, float32, in the order of the entries."""
        examples, device = batch(uses)
        features = torch.zeros(examples, sum(part.width for part in self.parts), device=device)
        start = 0
        for block, places in self._chosen:
            stop = start + len(places[0])
            for use in uses.get(block.name, ()):
                features[:, start:stop] += use.float().entries(*places)
            start = stop
        return features.mul_(self._scale)


def _places(flat: Tensor, block: Block) -> tuple[Tensor, Tensor, Tensor]:
    """Return group, row and column of flattened entries."""
    line = flat // block.right
    return line // block.left, line % block.left, flat % block.right
