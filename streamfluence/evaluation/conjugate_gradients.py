"""Conjugate gradients for several right-hand sides at once, each with its own step lengths."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Scores of the digits net stop changing in rank well above this; a tenth costs a fifth more steps.
TOLERANCE = 1e-3
MOST_ITERATIONS = 500


@dataclass(frozen=True)
class Solved:
    """A solution and how good it is.

    Attributes:
        solution: Shape ``(query, parameter)``.
        residual: Largest ``|b - A x| / |b|`` over the right-hand sides, by recurrence.
        iterations: Applications of the matrix.
        converged: Whether the residual is within the tolerance that was asked for.
    """

    solution: Tensor
    residual: float
    iterations: int
    converged: bool


def solve(
    apply: Callable[[Tensor], Tensor],
    right: Tensor,
    tolerance: float = TOLERANCE,
    most_iterations: int = MOST_ITERATIONS,
) -> Solved:
    """Return x with ``apply(x) = right``.

    Args:
        apply: Symmetric positive definite, from ``(query, parameter)`` to the same.
        right: Shape ``(query, parameter)``; a row of zeros has the solution zero.

    Source:
        Hestenes and Stiefel (1952); here without preconditioner, as in Martens (2010).
    """
    solution, residual = torch.zeros_like(right), right.clone()
    direction, squares = residual.clone(), residual.square().sum(1)
    scale = squares.sqrt()
    iterations = 0
    while iterations < most_iterations and _worst(squares, scale) > tolerance:
        image = apply(direction)
        curved = (direction * image).sum(1)
        # A finished right-hand side has a zero direction: it stays where it is.
        step = torch.where(curved > 0, squares / curved, 0.0).unsqueeze(1)
        solution += step * direction
        residual -= step * image
        before, squares = squares, residual.square().sum(1)
        ratio = torch.where(before > 0, squares / before, 0.0).unsqueeze(1)
        direction = residual + ratio * direction
        iterations += 1
    worst = _worst(squares, scale)
    return Solved(solution, worst, iterations, worst <= tolerance)


def _worst(squares: Tensor, scale: Tensor) -> float:
    return float(torch.where(scale > 0, squares.sqrt() / scale, 0.0).max())
