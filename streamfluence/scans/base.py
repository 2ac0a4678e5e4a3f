"""Contract of a scan: what leaving an example out of one step of training does to the weights at its end.

Steps are walked from the last to the first, since every step changes what the ones before it did.
The state of some steps that follow each other, a segment, holds what their examples did to the
weights at its end, under ``embeddings``, and how a change of the weights at its start arrives there:
all that ``carry`` looks at.

Laws: ``combine`` is associative, and not commutative; segments that are made apart and combined are
what one walk over all steps is; directions that are carried back have the products with embeddings
that they would have at the end.
"""

import torch
from torch import Tensor

from streamfluence.linalg import State

EMBEDDINGS = "embeddings"


class Scan:
    """Base of every scan; made of options alone.

    Attributes:
        source: Which vectors the curvature of a step is made of: ``loss`` (the rows of its examples) or
            ``probes`` (output-space probes pushed back through the Jacobian).
    """

    source = "loss"

    def empty(self, width: int, dtype: torch.dtype = torch.float64) -> State:
        """Return the state of no steps, for rows of this many features."""
        raise NotImplementedError

    def step(
        self,
        state: State,
        rows: Tensor,
        rate: float,
        vectors: Tensor | None = None,
        decay: float = 0.0,
    ) -> State:
        """Return ``state`` with one more step, which was taken before all of its own.

        Args:
            rows: Gradients of the step's examples at the weights before it, ``(example, feature)``.
            rate: By which each gradient was multiplied: the learning rate, over the number of
                examples where the loss is a mean.
            vectors: Their outer products sum to the curvature of the examples, ``(vector, feature)``;
                left out where they are the rows.
            decay: Share of the weights that the step took away: learning rate times weight decay.
        """
        raise NotImplementedError

    def combine(self, earlier: State, later: State) -> State:
        """Return the state of two segments of which one follows the other."""
        raise NotImplementedError

    def carry(self, state: State, directions: Tensor) -> Tensor:
        """Return what directions in the weights at the end of a segment are at its start.

        Args:
            directions: Shape ``(query, feature)``, such as gradients of queries.
        """
        raise NotImplementedError

    def embeddings(self, state: State) -> Tensor:
        """Return how the weights at the end would differ without an example in its step.

        Returns:
            Shape ``(example, feature)``: steps in the order of training, of each its examples as they
            were given. A product with a query's gradient is the increase of its loss.
        """
        return state[EMBEDDINGS]
