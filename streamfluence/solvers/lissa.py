"""The Neumann series of the inverse, term by term (LiSSA), with a step that cannot be too long."""

import torch
from torch import Tensor

from streamfluence.errors import InputError
from streamfluence.solvers._system import System, refuse_options
from streamfluence.solvers.base import Operator, Solved, Solver

_POWER_STEPS = 20


class Lissa(Solver):
    """``x + a (b - (H + damping) x)`` again and again, with a below one over the largest eigenvalue.

    That eigenvalue is found by power iteration. Every step takes H over the whole sample, where the
    paper draws an example: no noise, and no average over repeats. Stopping after J steps is
    like raising the damping by 1 / (a J), so it needs many more steps than conjugate gradients.

    Args:
        tolerance: Largest residual, relative to the right-hand side.
        steps: Most products with H; what is not within the tolerance by then says so.

    Source:
        Agarwal, Bullins and Hazan, Second-Order Stochastic Optimization for Machine Learning in Linear
        Time (2017), https://arxiv.org/abs/1602.03943; for influence Koh and Liang, Understanding
        Black-box Predictions via Influence Functions (2017), https://arxiv.org/abs/1703.04730.
    """

    def __init__(self, *, tolerance: float = 1e-3, steps: int = 10_000) -> None:
        refuse_options(tolerance, steps)
        self._tolerance, self.steps = tolerance, steps

    def solve(self, operator: Operator, right: Tensor, damping: Tensor | float) -> Solved:
        system = System(operator, right, damping)
        rate = 1 / _largest(system)
        solution, residual, before = torch.zeros_like(right), right.clone(), right.norm(dim=1)
        while system.steps < self.steps:
            todo = system.unsolved(residual, self._tolerance)
            if not bool(todo.any()):
                break
            moved = torch.where(todo.unsqueeze(1), residual, 0.0)
            image = system.product(moved)
            system.curved(moved, image)
            solution += rate * moved
            residual = residual - rate * image
            after = residual.norm(dim=1)
            if not bool((after <= before * (1 + 1e-3)).all()):
                raise InputError(
                    "the series of the inverse diverges: the damped curvature is not positive, or its "
                    "largest eigenvalue was not found; raise the damping, or use the solver "
                    "'conjugate_gradients'"
                )
            before = after
        return system.solved(solution, self._tolerance)


def _largest(system: System) -> float:
    """Return the largest eigenvalue of a system, by power iteration from a fixed vector."""
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(1, system.right.shape[1], generator=generator).to(system.right)
    for _ in range(_POWER_STEPS):
        vector = vector / vector.norm()
        image = system.product(vector)
        system.curved(vector, image)
        vector = image
    # The norm of an image is between the Rayleigh quotient and the largest eigenvalue.
    return float(vector.norm())
