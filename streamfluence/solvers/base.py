"""Contract of a solver: ``x`` with ``(H + damping) x = b``, of an H that is only a product with vectors.

For systems of the size of all weights, whose matrix never exists. Laws: equals the dense solve in
float64; several right-hand sides at once are what they are alone; the residual is that of what is
returned, computed from it; a matrix that is not positive definite is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Operator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Solved:
    """A solution and how good it is.

    Attributes:
        solution: Shape ``(query, parameter)``.
        residual: Largest ``|b - (H + damping) x| / |b|`` over the right-hand sides.
        steps: Products with H of all right-hand sides.
        converged: Whether the residual is within the tolerance of the solver.
    """

    solution: Tensor
    residual: float
    steps: int
    converged: bool


class Solver:
    """Base of every solver; made of options alone.

    Attributes:
        steps: Most products with H that it takes before it gives up; one more tells the residual.
    """

    steps: int

    def solve(self, operator: Operator, right: Tensor, damping: Tensor | float) -> Solved:
        """Return x with ``operator(x) + damping * x = right``.

        Args:
            operator: Products with H, symmetric and positive semi-definite, from
                ``(query, parameter)`` to the same.
            right: Shape ``(query, parameter)``, one system a row; a row of zeros has the solution zero.
            damping: Positive, in the unit of H's eigenvalues; one number, or one a parameter.

        Raises:
            InputError: If the damped H is seen not to be positive definite.
        """
        raise NotImplementedError
