"""What the last pass of the sketch sums: the curvature, and beside it what rows are.

Rows are loss gradients, so their second moment says how much of them lies in a direction. A
curvature of loss gradients is that itself, so it asks for no moments beside it.
"""

from collections.abc import Sequence

from torch import Tensor

from streamfluence.capture.base import Uses
from streamfluence.curvature.base import Curvature
from streamfluence.linalg import State, add_states
from streamfluence.projections.base import Projection
from streamfluence.run.states import select


class Sums:
    """The state over some examples: the curvature's and that of rows.

    Args:
        projection: Ready to apply.
        widths: Features of each block of the curvature.
    """

    def __init__(self, curvature: Curvature, projection: Projection, widths: Sequence[int]) -> None:
        self.curvature, self.projection, self.widths = curvature, projection, widths
        self.moments = curvature.row_moments

    def empty(self) -> State:
        """Return the state of no examples."""
        rows = self.moments.empty(self.widths) if self.moments else {}
        return _named(self.curvature.empty(self.widths), rows)

    def update(self, state: State, uses: Uses, weight: float) -> State:
        """Return ``state`` plus one batch of the curvature's vectors, counted ``weight`` times."""
        features = self.projection.apply(uses)
        curvature = self.curvature.update(select(state, "curvature"), features, weight, uses)
        return {**state, **_named(curvature, {})}

    def update_rows(self, state: State, uses: Uses) -> State:
        """Return ``state`` plus one batch of loss gradients, beside the curvature's vectors."""
        assert self.moments, "the curvature asks for no moments of rows"
        rows = self.moments.update(select(state, "rows"), self.projection.apply(uses))
        return {**state, **_named({}, rows)}

    def merge(self, a: State, b: State) -> State:
        """Return the state of both parts together."""
        curvature = self.curvature.merge(select(a, "curvature"), select(b, "curvature"))
        return _named(curvature, add_states(select(a, "rows"), select(b, "rows")))

    def row_moments(self, state: State, examples: float) -> list[Tensor]:
        """Return the mean moments of rows, one a block; none where the curvature asks for none."""
        sums = self.moments.blocks(select(state, "rows")) if self.moments else []
        return [block / examples for block in sums]


def _named(curvature: State, rows: State) -> State:
    return {
        **{f"curvature/{key}": value for key, value in curvature.items()},
        **{f"rows/{key}": value for key, value in rows.items()},
    }
