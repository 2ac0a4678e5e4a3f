"""One byte a kept coordinate, -127 to 127, and a float32 scale per row."""

import torch
from torch import Tensor

from streamfluence.codecs._kept import Kept, peaks
from streamfluence.codecs.base import Encoded
from streamfluence.linalg import State

_LARGEST = 127


class Int8(Kept):
    """The kept coordinates as integers, symmetric, relative to the largest of their row."""

    coordinate_bytes = 1

    def __init__(self, arrays: State) -> None:
        super().__init__(arrays)
        # Holds for every row: each error is at most half a step, and |row| is at least its peak.
        self.tolerance = self.stored**0.5 / (2 * _LARGEST)

    def _quantise(self, rows: Tensor) -> Encoded:
        peak, relative = peaks(rows)
        return Encoded((relative * _LARGEST).round().to(torch.int8), peak / _LARGEST)
