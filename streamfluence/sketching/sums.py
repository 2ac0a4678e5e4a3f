"""What the last pass of the sketch sums: the curvature, and beside it what rows are.

Rows are loss gradients, so their second moment says how much of them lies in a direction. With a
curvature of loss gradients it is the curvature itself, and not summed twice.
"""

from collections.abc import Sequence

from streamfluence.capture.base import Uses
from streamfluence.curvature.base import Curvature
from streamfluence.linalg import State
from streamfluence.projections.base import Projection
from streamfluence.registry import member
from streamfluence.run.states import select


class Sums:
    """The state over some examples: the curvature's and that of rows.

    Args:
        projection: Ready to apply.
        widths: Features of each block of the curvature.
    """

    def __init__(self, curvature: Curvature, projection: Projection, widths: Sequence[int]) -> None:
        self.curvature, self.projection, self.widths = curvature, projection, widths
        self.fisher = member("curvature", "fisher")()

    def empty(self) -> State:
        """Return the state of no examples."""
        rows = self.fisher.empty(self.widths) if self.curvature.source == "probes" else {}
        return _named(self.curvature.empty(self.widths), rows)

    def update(self, state: State, uses: Uses, weight: float) -> State:
        """Return ``state`` plus one batch of the curvature's vectors, counted ``weight`` times."""
        curvature = self.curvature.update(
            select(state, "curvature"), self.projection.apply(uses), weight
        )
        return {**state, **_named(curvature, {})}

    def update_rows(self, state: State, uses: Uses) -> State:
        """Return ``state`` plus one batch of loss gradients, beside a curvature of probes."""
        rows = self.fisher.update(select(state, "rows"), self.projection.apply(uses))
        return {**state, **_named({}, rows)}

    def merge(self, a: State, b: State) -> State:
        """Return the state of both parts together."""
        curvature = self.curvature.merge(select(a, "curvature"), select(b, "curvature"))
        rows = self.fisher.merge(select(a, "rows"), select(b, "rows"))
        return _named(curvature, rows)


def _named(curvature: State, rows: State) -> State:
    return {
        **{f"curvature/{key}": value for key, value in curvature.items()},
        **{f"rows/{key}": value for key, value in rows.items()},
    }
