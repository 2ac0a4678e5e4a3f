"""The default codec: each direction gets the bits it is worth, 0 to 8, rotated and packed.

A direction is worth the energy of rows in it times that of queries, which is the square of
its energy: bits are spent where an error would be multiplied. On digits (MLP 64-64-10, LDS of one model)
that moves 64 / 128 / 256 bytes from .677 / .742 / .780 to .706 / .759 / .790; rows that are
not quantised reach .796.

Coordinates with equal bits form a band. A band is turned by a fixed random
rotation, so that it looks Gaussian, and quantised with the Lloyd-Max levels of
a Gaussian. One bfloat16 scale per row and band is chosen so that <y, yhat> =
<y, y>: over random rotations the decoded row is then the row itself on average,
and inner products with a query that is not quantised have no bias.

Source:
    Reverse water-filling: Cover and Thomas, Elements of Information Theory (2006), 10.3.3. The scale:
    Vargaftik et al., EDEN: Communication-Efficient and Robust Distributed Mean Estimation for
    Federated Learning, https://arxiv.org/abs/2108.08842.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from streamfluence.codecs._allocation import SCALE_BYTES
from streamfluence.codecs._bands_allocation import (
    allocation,
    best_widths,
    check_options,
    fixed_widths,
)
from streamfluence.codecs._bfloat16 import from_bits, to_bits
from streamfluence.codecs._energies import checked_energies
from streamfluence.codecs._levels import lloyd_max
from streamfluence.codecs._nearest import nearest, nearest_tables
from streamfluence.codecs._packing import GROUP, LANES, lookup_table, pack, unpack
from streamfluence.codecs._rotation import deal, rotate, split
from streamfluence.codecs._rows import checked, refuse_non_finite
from streamfluence.codecs.base import Codec, Encoded
from streamfluence.linalg import State

# Rows decoded or encoded at once. A constant, so scores do not depend on how a partition is read;
# 512 x 1,024 decoded coordinates are 2 MiB, which stay in L2.
TILE_ROWS = 512
_GPU_TILE_ROWS = 1 << 16  # there a tile costs a few kernels, whatever its size


@dataclass(frozen=True)
class _Band:
    """One band: where it lies in a row, and what turns, quantises and reads it."""

    bits: int
    coordinates: slice
    code_bytes: slice
    rotation: tuple[Tensor, ...]
    levels: Tensor
    nearest: tuple[Tensor, Tensor]
    table: Tensor

    @property
    def width(self) -> int:
        return int(self.coordinates.stop - self.coordinates.start)


class Bands(Codec):
    """Bits by reverse water-filling; the bytes of a row are what the user gave, or a few fewer."""

    @classmethod
    def allocate(
        cls,
        energies: Tensor,
        row_bytes: int | None,
        seed: int,
        *,
        max_bits: int = 8,
        width: int | None = None,
        bits: int | None = None,
    ) -> State:
        """Return the bands, rotations and levels that lose the least energy in ``row_bytes``.

        Args:
            energies: e_j >= 0 of each coordinate, shape ``(feature,)``, float64.
            row_bytes: Budget of one row, 2 bytes a band included; None gives every coordinate
                ``max_bits``.
            seed: Decides the rotations.
            max_bits: Most bits of a direction, 1 to 8.
            width, bits: Both or neither: store exactly ``width`` coordinates, ``bits`` bits each.

        Raises:
            InputError: If the energies or options cannot be used.
            BudgetError: If ``row_bytes`` holds no direction, or not the fixed width and bits.
        """
        energies = checked_energies(energies)
        check_options(len(energies), max_bits, width, bits)
        if width is not None and bits is not None:
            widths = fixed_widths(row_bytes, width, bits)
        else:
            descending = energies.sort(descending=True).values
            widths = best_widths(descending, row_bytes, max_bits)
        return allocation(energies, widths, seed)

    def __init__(self, arrays: State) -> None:
        self._arrays = arrays
        self._index = arrays["index"]
        self._features = int(arrays["features"])
        self._bands = _bands(arrays)
        self.stored = len(self._index)
        self.code_bytes = self._bands[-1].code_bytes.stop
        self.stored_bytes = self.code_bytes + SCALE_BYTES * len(self._bands)
        self.tolerance = max(_typical_error(band) for band in self._bands)

    def to(self, device: torch.device | str) -> "Bands":
        """Return the codec with its arrays on ``device``."""
        return Bands({name: array.to(device) for name, array in self._arrays.items()})

    def encode(self, rows: Tensor) -> Encoded:
        """Return packed codes, uint8 ``(example, byte)``, and bfloat16 bits, uint16 ``(example, band)``."""
        rows = checked(rows, self._features)
        refuse_non_finite(rows)
        tiles = [self._encode(tile) for tile in rows.split(_tile_rows(rows))]
        codes, scales = (torch.cat(parts) for parts in zip(*tiles, strict=True))
        return Encoded(codes, to_bits(scales))

    def decode(self, encoded: Encoded, out: Tensor | None = None) -> Tensor:
        """Return float32 ``(example, stored)``, written into ``out`` when given."""
        n_rows, device = len(encoded.codes), encoded.codes.device
        if out is None:
            out = torch.empty(n_rows, self.stored, dtype=torch.float32, device=device)
        for rows, band, levels, scale in self._tiles(encoded):
            torch.mul(levels, scale, out=out[rows, band.coordinates])
        return out

    def query(self, rows: Tensor) -> Tensor:
        """Return ``rows`` turned as the stored rows are, shape ``(query, stored)``, float32."""
        kept = self._gather(checked(rows, self._features))
        return torch.cat([rotate(kept[:, b.coordinates], b.rotation) for b in self._bands], dim=1)

    def product(self, queries: Tensor, encoded: Encoded, out: Tensor | None = None) -> Tensor:
        """Return ``decode(encoded) @ queries.T``; scales are applied to the scores, not the rows."""
        if queries.is_cuda:  # a GPU has room for the rows, and little to gain from short products
            return torch.mm(self.decode(encoded), queries.T, out=out)
        if out is None:
            out = queries.new_empty(len(encoded.codes), len(queries))
        scores = queries.new_empty(min(TILE_ROWS, len(out)), len(queries))
        for rows, band, levels, scale in self._tiles(encoded):
            part = scores[: len(levels)]
            torch.mm(levels, queries[:, band.coordinates].T, out=part)
            if band.coordinates.start == 0:
                torch.mul(part, scale, out=out[rows])
            else:
                out[rows].addcmul_(part, scale)
        return out

    def facts(self) -> dict[str, Any]:
        """Return directions by bits, bytes by kind, and the expected share of energy lost."""
        directions = {
            str(b.bits): int((self._index[b.coordinates] < self._features).sum())
            for b in self._bands
        }
        return {
            "directions": sum(directions.values()),
            "directions_by_bits": directions,
            "directions_dropped": self._features - sum(directions.values()),
            "code_bytes": self.code_bytes,
            "scale_bytes": SCALE_BYTES * len(self._bands),
            "energy_lost": float(self._arrays["energy_lost"]),
        }

    def _gather(self, rows: Tensor) -> Tensor:
        """Return the stored coordinates, not yet turned; the fill of a last group is zero."""
        return pad(rows, (0, 1)).index_select(1, self._index)

    def _encode(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        kept = self._gather(rows)
        pairs = [_encode_band(band, kept[:, band.coordinates]) for band in self._bands]
        codes, scales = (torch.cat(parts, dim=1) for parts in zip(*pairs, strict=True))
        return codes, scales

    def _tiles(self, encoded: Encoded) -> Iterator[tuple[slice, _Band, Tensor, Tensor]]:
        """Yield (rows, band, levels without scale, scale) by tile, then band, in buffers used again."""
        codes, scales = encoded.codes, from_bits(encoded.scale)
        tile_rows = _tile_rows(codes)
        n_rows, widest = min(tile_rows, len(codes)), max(band.width for band in self._bands)
        buffer = torch.empty(n_rows * widest, dtype=torch.float32, device=codes.device)
        index = torch.empty(n_rows * widest, dtype=torch.int32, device=codes.device)
        for start in range(0, len(codes), tile_rows):
            rows = slice(start, min(start + tile_rows, len(codes)))
            for place, band in enumerate(self._bands):
                count = (rows.stop - rows.start) * band.width
                levels = buffer[:count].view(-1, band.width)
                scratch = index[: count // LANES[band.bits]]
                unpack(codes[rows, band.code_bytes], band.bits, band.table, scratch, levels)
                yield rows, band, levels, scales[rows, place : place + 1]


def _tile_rows(tensor: Tensor) -> int:
    return _GPU_TILE_ROWS if tensor.is_cuda else TILE_ROWS


def _encode_band(band: _Band, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return a band's bytes and its float32 scales, shape ``(example, 1)``."""
    # Relative to the largest first: squares of a row of norm 1e-25 would vanish.
    peak = rows.abs().amax(dim=1, keepdim=True)
    turned = rotate(rows / torch.where(peak > 0, peak, 1.0), band.rotation)
    energy = (turned**2).sum(dim=1, keepdim=True)
    spread = torch.where(energy > 0, (energy / band.width).sqrt(), 1.0)
    codes = nearest(turned / spread, band.nearest)
    levels = band.levels.index_select(0, codes.view(-1)).view_as(turned)
    overlap = (turned * levels).sum(dim=1, keepdim=True)
    scale = energy / torch.where(overlap > 0, overlap, 1.0)
    return pack(codes, band.bits), peak * scale


def _bands(arrays: State) -> tuple[_Band, ...]:
    """Return the bands that ``allocation`` decided."""
    bits, widths = arrays["bits"].tolist(), arrays["width"].tolist()
    levels = arrays["levels"].split([2**b for b in bits])
    sizes = [sum(len(piece) ** 2 for piece in deal(width)) for width in widths]
    rotations = arrays["rotation"].split(sizes)
    ends = [0, *torch.tensor(widths).cumsum(0).tolist()]
    byte_ends = [0, *(torch.tensor(widths) * torch.tensor(bits) // GROUP).cumsum(0).tolist()]
    return tuple(
        _Band(
            bits=b,
            coordinates=slice(*coordinates),
            code_bytes=slice(*code_bytes),
            rotation=split(rotation, width),
            levels=level,
            nearest=nearest_tables(level),
            table=lookup_table(level, b),
        )
        for b, width, level, rotation, coordinates, code_bytes in zip(
            bits, widths, levels, rotations, pairwise(ends), pairwise(byte_ends), strict=True
        )
    )


def _typical_error(band: _Band) -> float:
    """Return the relative error of a band that looks Gaussian, with room for narrow bands and bfloat16."""
    lost = lloyd_max(band.bits)[1]
    return float((lost / (1.0 - lost)) ** 0.5 * (1.0 + 3.0 / band.width**0.5) + 2.0**-8)
