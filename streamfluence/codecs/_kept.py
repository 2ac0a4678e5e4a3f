"""The codecs that keep single coordinates: as many of the largest energy as fit, unrotated.

Each stores one number a coordinate and at most one float32 scale a row. Row
norms span six decades, so a narrow number format always has a scale per row;
an all-zero row has scale 0 and decodes to zeros exactly.
"""

from typing import Any

import torch
from torch import Tensor

from streamfluence.codecs._energies import by_energy, checked_energies, energy_lost
from streamfluence.codecs._rows import checked, refuse_non_finite
from streamfluence.codecs.base import Codec, Encoded
from streamfluence.errors import BudgetError
from streamfluence.linalg import State

# Rows that are cast to float32 at once: 512 x 1,024 coordinates are 2 MiB, which stay in L2.
TILE_ROWS = 512


class Kept(Codec):
    """Base of the codecs that keep coordinates as they are; members say how one is written.

    Attributes:
        coordinate_bytes, row_scale_bytes: What one coordinate and one row's scale cost.
    """

    coordinate_bytes = 4
    row_scale_bytes = 4

    @classmethod
    def allocate(cls, energies: Tensor, row_bytes: int | None, seed: int) -> State:
        """Keep the coordinates of largest energy that fit in ``row_bytes``, in their original order."""
        energies = checked_energies(energies)
        fits = len(energies)
        if row_bytes is not None:
            fits = min(fits, (row_bytes - cls.row_scale_bytes) // cls.coordinate_bytes)
        if fits < 1:
            raise BudgetError(
                f"a row of {row_bytes} bytes is too short for codec {cls._name()}: one coordinate "
                f"takes {cls.coordinate_bytes + cls.row_scale_bytes} bytes, its row's scale "
                "included; raise the bytes per row"
            )
        kept = by_energy(energies)[:fits].sort().values
        return {
            "index": kept,
            "features": torch.tensor([len(energies)]),
            "energy_lost": energy_lost(energies[kept].sum(), energies),
        }

    def __init__(self, arrays: State) -> None:
        self._arrays = arrays
        self._index = arrays["index"]
        self._features = int(arrays["features"])
        self.stored = len(self._index)
        self.stored_bytes = self.stored * self.coordinate_bytes + self.row_scale_bytes

    def to(self, device: torch.device | str) -> "Kept":
        """Return the codec with its arrays on ``device``."""
        return type(self)({name: array.to(device) for name, array in self._arrays.items()})

    def encode(self, rows: Tensor) -> Encoded:
        """Return one code a kept coordinate, and one scale a row where the format needs it."""
        rows = checked(rows, self._features)
        refuse_non_finite(rows)
        return self._quantise(self._keep(rows))

    def decode(self, encoded: Encoded, out: Tensor | None = None) -> Tensor:
        """Return float32 ``(example, stored)``, written into ``out`` when given."""
        if out is None:
            out = torch.empty(encoded.codes.shape, dtype=torch.float32, device=encoded.codes.device)
        out.copy_(encoded.codes)
        return self._rescale(out, encoded.scale)

    def query(self, rows: Tensor) -> Tensor:
        """Return the kept coordinates of ``rows``, shape ``(query, stored)``, float32."""
        return self._keep(checked(rows, self._features))

    def product(self, queries: Tensor, encoded: Encoded, out: Tensor | None = None) -> Tensor:
        """Return ``decode(encoded) @ queries.T``; the scale is applied to the scores, not the rows."""
        if queries.is_cuda:
            return torch.mm(self.decode(encoded), queries.T, out=out)
        n_rows = len(encoded.codes)
        if out is None:
            out = queries.new_empty(n_rows, len(queries))
        buffer = queries.new_empty(min(TILE_ROWS, n_rows), self.stored)
        for start in range(0, n_rows, TILE_ROWS):
            tile = slice(start, start + TILE_ROWS)
            rows = buffer[: len(encoded.codes[tile])].copy_(encoded.codes[tile])
            torch.mm(rows, queries.T, out=out[tile])
        return self._rescale(out, encoded.scale)

    def facts(self) -> dict[str, Any]:
        """Return the directions and bytes of one row and the share of energy that is not kept."""
        return {
            "directions": self.stored,
            "directions_dropped": self._features - self.stored,
            "code_bytes": self.stored * self.coordinate_bytes,
            "scale_bytes": self.row_scale_bytes,
            "energy_lost": float(self._arrays["energy_lost"]),
        }

    def _keep(self, rows: Tensor) -> Tensor:
        return rows if self.stored == self._features else rows.index_select(1, self._index)

    def _rescale(self, values: Tensor, scale: Tensor) -> Tensor:
        return values.mul_(scale) if scale.shape[1] else values

    def _quantise(self, rows: Tensor) -> Encoded:
        raise NotImplementedError

    @classmethod
    def _name(cls) -> str:
        return cls.__name__.lower()


def peaks(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's largest magnitude, shape ``(example, 1)``, and the rows divided by it.

    Zero rows stay zero. The division is exact about range: no subnormal peak overflows.
    """
    peak = rows.abs().amax(dim=1, keepdim=True)
    return peak, rows / torch.where(peak > 0, peak, 1.0)
