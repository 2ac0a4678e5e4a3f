"""Chosen entries of a sum of outer products, without forming the sum."""

import torch
from torch import Tensor

_CHUNK_ENTRIES = 1 << 20  # 4 MiB for each of the two gathered factors


def outer_entries(
    left: Tensor, right: Tensor, groups: Tensor, rows: Tensor, columns: Tensor
) -> Tensor:
    """Return ``sum_t left[:, groups[j], t, rows[j]] right[:, groups[j], t, columns[j]]`` for every j."""
    pieces = []
    for part in _chunks(len(groups), left.shape[0] * left.shape[2]):
        group = groups[part]
        product = left[:, group, :, rows[part]] * right[:, group, :, columns[part]]
        pieces.append(product.sum(-1))  # indices on both sides of a slice put the entry axis first
    return torch.cat(pieces).T


def indexed_entries(index: Tensor, right: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the entries of a sum of outer products whose left rows are one-hot at ``index``."""
    pieces = []
    for part in _chunks(len(rows), index.numel()):
        here = index[..., None] == rows[part]
        pieces.append((right[..., columns[part]] * here).sum(1))
    return torch.cat(pieces, dim=1)


def _chunks(count: int, each: int) -> list[slice]:
    """Return slices of ``count`` entries so that a slice of ``each`` numbers an entry stays small."""
    step = max(1, _CHUNK_ENTRIES // each)
    return [slice(start, start + step) for start in range(0, max(count, 1), step)]
