"""The leading eigenvectors of one side's moment, from the matrix, its diagonal, or a sketch of it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from streamfluence.linalg import symmetric_eigen


@dataclass(frozen=True)
class Side:
    """Eigenpairs of one side, largest first.

    Attributes:
        values: Shape ``(group, vector)``, float64.
        vectors: Shape ``(group, side, vector)``, float32; or ``(vector,)``, int64, which unit
            vectors they are.
    """

    values: Tensor
    vectors: Tensor


def of_matrix(matrix: Tensor) -> Side:
    """Return all eigenpairs of symmetric matrices, shape ``(group, side, side)``."""
    pairs = [symmetric_eigen(one) for one in matrix]
    values, vectors = (torch.stack(each) for each in zip(*pairs, strict=True))
    return Side(values, vectors.float())


def of_diagonal(diagonal: Tensor) -> Side:
    """Return all eigenpairs of a diagonal matrix, shape ``(side,)``: its unit vectors, sorted."""
    values, rows = diagonal.clamp_min(0.0).sort(descending=True, stable=True)
    return Side(values[None], rows)


def of_sketch(sketch: Tensor, omega: Tensor) -> Side:
    """Return approximate leading eigenpairs of positive matrices M, from ``M @ omega``.

    Args:
        sketch: Shape ``(group, side, rank)``, float64.
        omega: Shape ``(side, rank)``, Gaussian.

    Returns:
        ``rank`` pairs a group; the eigenvalues are never above the true ones, up to rounding.

    Source:
        Stabilised Nystroem approximation: Tropp et al., Fixed-Rank Approximation of a
        Positive-Semidefinite Matrix from Streaming Data, https://arxiv.org/abs/1706.05736, algorithm 3.
    """
    pairs = [_nystrom(one, omega.to(one)) for one in sketch]
    values, vectors = (torch.stack(each) for each in zip(*pairs, strict=True))
    return Side(values, vectors.float())


def _nystrom(sketch: Tensor, omega: Tensor) -> tuple[Tensor, Tensor]:
    basis, triangle = torch.linalg.qr(omega)
    product = torch.linalg.solve_triangular(triangle, sketch, upper=True, left=False)
    # The sketch was summed from float32 products, so that is the precision the shift must cover.
    shift = torch.finfo(torch.float32).eps * torch.linalg.matrix_norm(product)
    values, vectors = symmetric_eigen(
        basis.T @ product + shift * torch.eye(basis.shape[1]).to(basis)
    )
    root = torch.where(values > 0, values.rsqrt(), 0.0)
    left, singular, _ = torch.linalg.svd(
        (product + shift * basis) @ (vectors * root), full_matrices=False
    )
    pivot = left.gather(0, left.abs().argmax(0, keepdim=True))
    return (singular.square() - shift).clamp_min(0.0), left * torch.where(pivot < 0, -1.0, 1.0)
