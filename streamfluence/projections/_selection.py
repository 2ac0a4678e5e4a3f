"""Which pairs of directions to keep: those of largest energy over all blocks at once.

Ties go to the earlier block, then to the earlier pair, so a selection never depends on
the sorting algorithm.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def pair_energies(left: Tensor, right: Tensor, scale: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return every pair that can be among the ``count`` largest of its group.

    Args:
        left, right: Energies of the directions of either side, largest first, shape ``(group, vector)``.
        scale: Of each group; a pair's energy is ``scale * left * right``.
        count: A pair is left out when at least ``count`` pairs of its group are as large.

    Returns:
        Energies ``(pair,)`` and places ``(pair, 3)``: group, left direction, right direction.
    """
    rows, columns = _under_hyperbola(left.shape[1], right.shape[1], count)
    rows, columns = rows.to(left.device), columns.to(left.device)
    energy = scale[:, None] * left[:, rows] * right[:, columns]
    group = torch.arange(len(left), device=left.device).repeat_interleave(len(rows))
    return energy.flatten(), torch.stack(
        [group, rows.repeat(len(left)), columns.repeat(len(left))], dim=1
    )


def keep_largest(energies: Sequence[Tensor], count: int) -> list[Tensor]:
    """Return a mask for each block's energies: True for the ``count`` largest over all blocks."""
    sizes = [len(energy) for energy in energies]
    order = torch.cat(list(energies)).sort(descending=True, stable=True).indices
    keep = torch.zeros(sum(sizes), dtype=torch.bool, device=order.device)
    keep[order[:count]] = True
    return list(keep.split(sizes))


def _under_hyperbola(rows: int, columns: int, count: int) -> tuple[Tensor, Tensor]:
    """Return the places (r, c) with (r + 1)(c + 1) <= count: all others have ``count`` pairs before them."""
    row = torch.arange(min(rows, count))
    lengths = (count // (row + 1)).clamp_max(columns)
    start = lengths.cumsum(0) - lengths
    column = torch.arange(int(lengths.sum())) - start.repeat_interleave(lengths)
    return row.repeat_interleave(lengths), column
