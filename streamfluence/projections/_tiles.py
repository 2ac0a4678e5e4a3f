"""Cut the concatenated gradient of all blocks into tiles small enough to materialise.

A coordinate is the place of a gradient entry in the concatenation of all blocks,
each flattened in the order (group, left, right). A tile is a box of one block, so
neither the gradient of a whole vocabulary nor its random matrix exists at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streamfluence.capture.base import Block, Use


@dataclass(frozen=True)
class Tile:
    """A box of one block; ``offset`` is the coordinate at which the block starts."""

    block: Block
    offset: int
    groups: slice
    rows: slice
    columns: slice

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of groups, rows and columns."""
        return tuple(axis.stop - axis.start for axis in (self.groups, self.rows, self.columns))

    @property
    def size(self) -> int:
        """Number of coordinates."""
        groups, rows, columns = self.shape
        return groups * rows * columns

    def coordinates(self, device: torch.device | str) -> Tensor:
        """Return its coordinates in the order of ``gradient``, int64."""
        group, row, column = (
            torch.arange(axis.start, axis.stop, device=device)
            for axis in (self.groups, self.rows, self.columns)
        )
        line = (group[:, None] * self.block.left + row)[..., None] * self.block.right
        return (self.offset + line + column).flatten()

    def gradient(self, uses: Sequence[Use]) -> Tensor:
        """Return the gradient in this box, shape ``(example, coordinate)``, float32."""
        box = self.groups, self.rows, self.columns
        first, *more = (use.float().box(*box).flatten(1) for use in uses)
        return sum(more, first)


def cut_tiles(blocks: Sequence[Block], entries: int) -> list[Tile]:
    """Return tiles of at most ``entries`` coordinates that cover every block, in order."""
    tiles: list[Tile] = []
    offset = 0
    for block in blocks:
        tiles.extend(_cut(block, offset, entries))
        offset += block.size
    return tiles


def _cut(block: Block, offset: int, entries: int) -> Iterator[Tile]:
    columns = min(block.right, entries)
    rows = min(block.left, max(1, entries // block.right))
    groups = min(block.groups, max(1, entries // (block.left * block.right)))
    for group in _slices(block.groups, groups):
        for row in _slices(block.left, rows):
            for column in _slices(block.right, columns):
                yield Tile(block, offset, group, row, column)


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]
