"""What curvatures share whose state is one kind of second moments of the features."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from streamfluence.curvature._moments import Moments
from streamfluence.curvature.base import Curvature
from streamfluence.linalg import State


class Summed(Curvature):
    """Base: the state is ``sums`` over the vectors.

    Attributes:
        sums: Which moments.
    """

    sums: Moments

    def empty(self, widths: Sequence[int]) -> State:
        """Return the moments of no vectors."""
        return self.sums.empty(widths)

    def update(
        self,
        state: State,
        rows: Tensor,
        weight: float = 1.0,
        uses: Mapping[str, Sequence[Any]] | None = None,
    ) -> State:
        """Return ``state`` plus ``weight`` times the moments of ``rows``, shape ``(example, feature)``."""
        return self.sums.update(state, rows, weight)

    def merge(self, a: State, b: State) -> State:
        """Return the sum."""
        return self.sums.merge(a, b)
