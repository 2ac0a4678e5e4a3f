"""Principal components of fewer rows than they are long, from the products between rows."""

import torch
from torch import Tensor

from streamfluence.linalg import symmetric_eigen

_CHUNK = 1 << 13  # coordinates at a time, for products in float64
_NOISE = 1e-12  # of the largest eigenvalue


def components(rows: Tensor, count: int) -> tuple[Tensor, float, float]:
    """Return the leading principal components of rows, and how much of rows they hold.

    Args:
        rows: Shape ``(row, coordinate)``, float32.

    Returns:
        Orthonormal columns ``(coordinate, component)``, float64, as many as ``count``, or as the rows
        span if that is less; the share of these rows' energy in them; and as an estimate of that of
        other rows, the share of the odd rows' energy in the components of the even rows.
    """
    gram = rows.new_zeros(len(rows), len(rows), dtype=torch.float64)
    for part in rows.split(_CHUNK, dim=1):
        wide = part.double()
        gram.addmm_(wide, wide.T)
    mix, energy = _mix(gram, count)
    halves = gram[1::2, ::2] @ _mix(gram[::2, ::2], count)[0]
    others = float(gram[1::2, 1::2].trace())
    beyond = float(halves.square().sum()) / others if others > 0 else 0.0
    basis = rows.new_empty(rows.shape[1], mix.shape[1], dtype=torch.float64)
    for part, place in zip(rows.split(_CHUNK, dim=1), basis.split(_CHUNK), strict=True):
        torch.mm(part.double().T, mix, out=place)
    return basis, float(energy / gram.trace()), beyond


def _mix(gram: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the mixtures of rows that are their components, and the energy in them."""
    values, vectors = symmetric_eigen(gram)
    kept = values[: min(count, _rank(values))]
    return vectors[:, : len(kept)] * kept.rsqrt(), kept.sum()


def orthonormal(columns: Tensor) -> Tensor:
    """Return orthonormal columns that span what ``columns``, float64, span; they are overwritten."""
    values, vectors = symmetric_eigen(columns.T @ columns)
    rank = _rank(values)
    mix = vectors[:, :rank] * values[:rank].rsqrt()
    for part in columns.split(_CHUNK):
        part[:, :rank] = part @ mix
    return columns[:, :rank]


def _rank(values: Tensor) -> int:
    return int((values > _NOISE * values[:1]).sum())
