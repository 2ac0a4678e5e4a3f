"""Conjugate gradients for several right-hand sides at once, each with its own step lengths."""

import torch
from torch import Tensor

from streamfluence.solvers._system import System, refuse_options
from streamfluence.solvers.base import Operator, Solved, Solver


class ConjugateGradients(Solver):
    """The exact solution in as many steps as H has different eigenvalues, and a good one long before.

    Args:
        tolerance: Largest residual, relative to the right-hand side. Scores of the digits net stop
            changing in rank well above a thousandth; a tenth of that costs a fifth more steps.
        steps: Most products with H; what is not within the tolerance by then says so.

    Source:
        Hestenes and Stiefel, Methods of Conjugate Gradients for Solving Linear Systems (1952),
        https://doi.org/10.6028/jres.049.044; here without a preconditioner. For curvature of nets:
        Martens, Deep Learning via Hessian-free Optimization (2010),
        https://www.cs.toronto.edu/~jmartens/docs/Deep_HessianFree.pdf.
    """

    def __init__(self, *, tolerance: float = 1e-3, steps: int = 500) -> None:
        refuse_options(tolerance, steps)
        self._tolerance, self.steps = tolerance, steps

    def solve(self, operator: Operator, right: Tensor, damping: Tensor | float) -> Solved:
        system = System(operator, right, damping)
        solution, residual = torch.zeros_like(right), right.clone()
        direction = residual.clone()
        while system.steps < self.steps:
            todo = system.unsolved(residual, self._tolerance)
            if not bool(todo.any()):
                break
            # One that is solved stays where it is, as it would alone.
            direction[~todo] = 0
            image = system.product(direction)
            curved = system.curved(direction, image)
            squares = residual.square().sum(1)
            step = torch.where(curved > 0, squares / curved, 0.0).unsqueeze(1)
            solution += step * direction
            residual -= step * image
            ratio = torch.where(squares > 0, residual.square().sum(1) / squares, 0.0)
            direction = residual + ratio.unsqueeze(1) * direction
        return system.solved(solution, self._tolerance)
