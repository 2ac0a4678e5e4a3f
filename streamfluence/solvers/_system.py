"""A damped system as solvers work on it: products are counted, residuals are told as they are."""

import torch
from torch import Tensor

from streamfluence.errors import InputError
from streamfluence.solvers.base import Operator, Solved

_ROUNDING = (
    100  # roundings of the largest eigenvalue by which a curvature of zero may look negative
)


class System:
    """``(H + damping) x = right``, see ``Solver.solve``.

    Attributes:
        steps: Products that were taken so far.
    """

    def __init__(self, operator: Operator, right: Tensor, damping: Tensor | float) -> None:
        self.right, self.steps = right, 0
        self._operator, self._damping = operator, damping
        self._norms, self._largest = right.norm(dim=1), 0.0

    def product(self, vectors: Tensor) -> Tensor:
        """Return the damped H times each row of ``vectors``."""
        self.steps += 1
        return self._operator(vectors) + self._damping * vectors

    def curved(self, vectors: Tensor, images: Tensor) -> Tensor:
        """Return ``v^T (H + damping) v`` of each row, ``(query,)``.

        Args:
            images: The products of ``vectors``.

        Raises:
            InputError: If one is negative by more than rounding, or no number.
        """
        found, squares = (vectors * images).sum(1), vectors.square().sum(1)
        some = squares > 0
        if bool(some.any()):
            stretched = (images.norm(dim=1) / squares.sqrt())[some].max()
            self._largest = max(self._largest, float(stretched))
        rounding = _ROUNDING * torch.finfo(found.dtype).eps * self._largest
        bad = some & ~(found >= -rounding * squares)
        if bool(bad.any()):
            value = float((found / squares)[bad][0])
            raise InputError(
                f"the damped curvature is not positive: along one direction it is {value:.3g}; raise the "
                "damping, or take a curvature without negative eigenvalues"
            )
        return found

    def unsolved(self, residual: Tensor, tolerance: float) -> Tensor:
        """Return which right-hand sides are not solved to the tolerance yet, ``(query,)``.

        Args:
            residual: As it is carried along, from which rounding takes away: half the tolerance is
                wanted of it, so that what is so stays within the whole.
        """
        unsolved: Tensor = residual.norm(dim=1) > 0.5 * tolerance * self._norms
        return unsolved

    def solved(self, solution: Tensor, tolerance: float) -> Solved:
        """Return a solution with the residual that it has."""
        residual = (self.right - self.product(solution)).norm(dim=1)
        shares = torch.where(self._norms > 0, residual / self._norms, residual)
        worst = float(shares.max()) if len(shares) else 0.0
        return Solved(solution, worst, self.steps, worst <= tolerance)


def refuse_options(tolerance: float, steps: int) -> None:
    """Raise InputError for a tolerance or a number of steps that nothing is solved by."""
    if not 0 < tolerance < 1:
        raise InputError(f"tolerance = {tolerance}; it must be above 0 and below 1")
    if steps < 1:
        raise InputError(f"steps = {steps}; it must be at least 1")
