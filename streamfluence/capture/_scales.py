"""Gradients in other coordinates of the weights: every entry times a factor, of rank one in a block."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from streamfluence.capture.base import Block, Uses


@dataclass(frozen=True)
class Scales:
    """The factors of every block: entry (left, right) of a group is multiplied by ``left * right``.

    Attributes:
        sides: Block name to the factors of its sides, shapes ``(group, left)`` and ``(group, right)``;
            without any, the coordinates are the weights' own.
    """

    sides: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def apply(self, uses: Uses) -> Uses:
        """Return the uses of scaled gradients; no gradient is formed for it."""
        if not self.sides:
            return uses
        return {
            name: [use.scaled(*self.sides[name]) for use in some] for name, some in uses.items()
        }

    def of_block(self, block: Block) -> Tensor:
        """Return the factors of a block's entries, shape ``(group, left, right)``."""
        if not self.sides:
            return torch.ones(block.groups, block.left, block.right)
        left, right = self.sides[block.name]
        return left[:, :, None] * right[:, None, :]

    def to(self, device: torch.device | str) -> "Scales":
        """Return the scales on ``device``."""
        return Scales({n: (a.to(device), b.to(device)) for n, (a, b) in self.sides.items()})


def by_block(
    blocks: Sequence[Block], left: Tensor, right: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return flat numbers of both sides of all blocks by block name, as ``Scales`` has them."""
    lefts = left.split([block.groups * block.left for block in blocks])
    rights = right.split([block.groups * block.right for block in blocks])
    return {
        block.name: (a.view(block.groups, -1), b.view(block.groups, -1))
        for block, a, b in zip(blocks, lefts, rights, strict=True)
    }
