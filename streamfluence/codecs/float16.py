"""Two bytes a kept coordinate, and a float32 scale that makes the largest of each row 1.

With the scale no row overflows or vanishes, whatever its norm.
"""

import torch
from torch import Tensor

from streamfluence.codecs._kept import Kept, peaks
from streamfluence.codecs.base import Encoded
from streamfluence.linalg import State


class Float16(Kept):
    """The kept coordinates in float16, relative to the largest of their row."""

    coordinate_bytes = 2

    def __init__(self, arrays: State) -> None:
        super().__init__(arrays)
        # Holds for every row: 2^-11 of a normal number, 2^-25 of the peak of a subnormal one.
        self.tolerance = 2.0**-11 + 2.0**-25 * self.stored**0.5

    def _quantise(self, rows: Tensor) -> Encoded:
        peak, relative = peaks(rows)
        return Encoded(relative.to(torch.float16), peak)
