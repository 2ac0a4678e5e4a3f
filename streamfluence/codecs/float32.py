"""Rows as they are: four bytes a kept coordinate, no scale, nothing lost."""

import torch
from torch import Tensor

from streamfluence.codecs._kept import Kept
from streamfluence.codecs.base import Encoded


class Float32(Kept):
    """The kept coordinates in float32."""

    row_scale_bytes = 0
    tolerance = 0.0

    def product(self, queries: Tensor, encoded: Encoded, out: Tensor | None = None) -> Tensor:
        """Return ``codes @ queries.T``, without a copy of the rows."""
        return torch.mm(encoded.codes, queries.T, out=out)

    def _quantise(self, rows: Tensor) -> Encoded:
        return Encoded(rows, rows.new_empty(len(rows), 0))
