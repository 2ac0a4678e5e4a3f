"""A few coordinates, as they are."""

from torch import Tensor

from streamfluence.codecs._kept import Kept
from streamfluence.codecs.base import Encoded
from streamfluence.linalg import State


class FewCoordinates(Kept):
    """At most so many coordinates in float32.

    Args:
        most: How many; 0 for as many as fit.
    """

    row_scale_bytes = 0
    tolerance = 0.0

    @classmethod
    def allocate(
        cls, energies: Tensor, row_bytes: int | None, seed: int, *, most: int = 0
    ) -> State:
        budget = row_bytes
        if most:
            budget = min(row_bytes or 4 * most, 4 * most)
        return super().allocate(energies, budget, seed)

    def _quantise(self, rows: Tensor) -> Encoded:
        return Encoded(rows, rows.new_empty(len(rows), 0))
