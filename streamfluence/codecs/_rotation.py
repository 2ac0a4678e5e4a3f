"""Random rotations of a band, in pieces small enough to store.

A rotated row looks like a Gaussian vector whatever the row was, which is what
the levels are made for. A band of more than ``PIECE`` coordinates is dealt like
cards into pieces of nearly equal energy, each with a dense Haar rotation: 2 KiB
of float32 a coordinate at the most. The matrices are stored with the sketch and
never drawn again, because a QR of another library would give other rows.
"""

import torch
from torch import Tensor

from streamfluence.linalg import hash_counters, random_orthogonal

PIECE = 512


def deal(width: int) -> list[Tensor]:
    """Return the positions of each piece of a band whose coordinates come by descending energy."""
    n_pieces = -(-width // PIECE)
    position = torch.arange(width)
    turn = position % (2 * n_pieces)
    owner = torch.minimum(turn, 2 * n_pieces - 1 - turn)  # there and back: 0 1 2 2 1 0 0 1 2 ...
    return [position[owner == piece] for piece in range(n_pieces)]


def draw_rotation(width: int, seed: int, band: int) -> Tensor:
    """Return the matrices of a band's pieces, flattened one after another, float32."""
    seeds = [int(hash_counters(seed, band, piece)) for piece in range(-(-width // PIECE))]
    matrices = [random_orthogonal(len(p), s) for p, s in zip(deal(width), seeds, strict=True)]
    return torch.cat([matrix.flatten().to(torch.float32) for matrix in matrices])


def split(flat: Tensor, width: int) -> tuple[Tensor, ...]:
    """Return the matrices of a band from their flattened form."""
    sizes = [len(positions) for positions in deal(width)]
    flats = flat.split([size**2 for size in sizes])
    return tuple(part.view(size, size) for part, size in zip(flats, sizes, strict=True))


def rotate(rows: Tensor, pieces: tuple[Tensor, ...]) -> Tensor:
    """Return ``rows``, whose coordinates lie piece by piece, each piece times its matrix."""
    columns = rows.split([len(piece) for piece in pieces], dim=1)
    return torch.cat([part @ piece for part, piece in zip(columns, pieces, strict=True)], dim=1)
