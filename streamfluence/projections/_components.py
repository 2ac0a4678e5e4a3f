"""Principal components of fewer rows than they are long, from the products between rows."""

import torch
from torch import Tensor

from streamfluence.linalg import symmetric_eigen

_CHUNK = 1 << 13  # coordinates at a time, for products in float64
_NOISE = 1e-12  # of the largest eigenvalue


def components(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the leading principal components of rows, and the share of their energy in each.

    Args:
        rows: Shape ``(row, coordinate)``, float32.

    Returns:
        Orthonormal columns ``(coordinate, component)`` and shares ``(component,)``, float64; as many
        as ``count``, or as the rows span if that is less.
    """
    gram = rows.new_zeros(len(rows), len(rows), dtype=torch.float64)
    for part in rows.split(_CHUNK, dim=1):
        wide = part.double()
        gram.addmm_(wide, wide.T)
    values, vectors = symmetric_eigen(gram)
    kept = values[: min(count, _rank(values))]
    mix = vectors[:, : len(kept)] * kept.rsqrt()
    return torch.cat([p.double().T @ mix for p in rows.split(_CHUNK, dim=1)]), kept / gram.trace()


def orthonormal(columns: Tensor) -> Tensor:
    """Return orthonormal columns that span what ``columns``, float64, span."""
    values, vectors = symmetric_eigen(columns.T @ columns)
    rank = _rank(values)
    return columns @ (vectors[:, :rank] * values[:rank].rsqrt())


def _rank(values: Tensor) -> int:
    return int((values > _NOISE * values[:1]).sum())
