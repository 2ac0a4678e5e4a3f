"""Decide which directions are stored with how many bits, and draw the rotations: the arrays of ``bands``."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from streamfluence.codecs._allocation import SCALE_BYTES, allocate
from streamfluence.codecs._energies import by_energy, energy_lost
from streamfluence.codecs._levels import MAX_BITS, distortions, lloyd_max
from streamfluence.codecs._packing import GROUP
from streamfluence.codecs._rotation import deal, draw_rotation
from streamfluence.errors import BudgetError, InputError
from streamfluence.linalg import State


def check_options(features: int, max_bits: int, width: int | None, bits: int | None) -> None:
    """Raise ``InputError`` for options that no rows could be stored with."""
    if (width is None) != (bits is None):
        raise InputError("codec bands needs width and bits together, or neither; give both")
    for name, value in (("max_bits", max_bits), ("bits", bits)):
        if value is not None and not 1 <= value <= MAX_BITS:
            raise InputError(f"codec bands: {name} must be 1 to {MAX_BITS}, got {value}")
    if width is not None and not 1 <= width <= features:
        raise InputError(
            f"codec bands: width {width} was asked, but rows have {features} coordinates; "
            f"give a width of 1 to {features}"
        )


def fixed_widths(row_bytes: int | None, width: int, bits: int) -> dict[int, int]:
    """Return one band of ``width`` coordinates; raise ``BudgetError`` if it does not fit."""
    need = -(-width // GROUP) * bits + SCALE_BYTES
    if row_bytes is not None and need > row_bytes:
        raise BudgetError(
            f"{width} directions of {bits} bits take {need} bytes a row, its scale included, but "
            f"{row_bytes} are allowed; raise the bytes per row or lower width or bits"
        )
    return {bits: width}


def best_widths(energies: Tensor, row_bytes: int | None, max_bits: int) -> dict[int, int]:
    """Return how many coordinates have how many bits, most bits first.

    What has to be small is the error of a score, ``sum_j q_j (y_j - yhat_j)``. Its square expects
    ``E[q_j^2] d(b_j) e_j`` of coordinate j, and a query is a gradient like any other, whitened
    alike: its energy is e_j, too. So a coordinate is worth e_j^2, not e_j.

    Args:
        energies: Descending, shape ``(feature,)``, float64.
        row_bytes: Budget; None gives every coordinate ``max_bits``.
        max_bits: Most bits of a coordinate.
    """
    if row_bytes is None:
        return {max_bits: len(energies)}
    if not energies.any():
        raise InputError("no coordinate has any energy, so none is worth a byte; check the sketch")
    # Relative to the largest: the squares of energies of 1e-170 would vanish.
    worth = (
        pad((energies / energies[0]).square(), (0, -len(energies) % GROUP))
        .view(-1, GROUP)
        .sum(dim=1)
    )
    bits = allocate(worth.numpy(), row_bytes, distortions(max_bits))
    if not bits.any():
        raise BudgetError(
            f"a row of {row_bytes} bytes holds no direction: the least is {1 + SCALE_BYTES} bytes "
            "(8 directions of 1 bit and their scale); raise the bytes per row"
        )
    counts = {b: GROUP * int((bits == b).sum()) for b in range(max_bits, 0, -1)}
    return {b: width for b, width in counts.items() if width}


def allocation(energies: Tensor, widths: dict[int, int], seed: int) -> State:
    """Return the arrays of the codec that stores the best coordinates in bands of these widths.

    The levels are stored too, so that a row decodes to the same number on every machine.
    """
    order = by_energy(energies)
    index, matrices, kept, start = [], [], energies.new_zeros(()), 0
    for bits, width in widths.items():
        chosen = order[start : start + width]
        start += width
        kept += energies[chosen].sum() * (1.0 - lloyd_max(bits)[1])
        chosen = pad(chosen, (0, -len(chosen) % GROUP), value=len(energies))
        index.append(torch.cat([chosen[piece] for piece in deal(len(chosen))]))
        matrices.append(draw_rotation(len(chosen), seed, bits))
    return {
        "index": torch.cat(index),
        "features": torch.tensor([len(energies)]),
        "bits": torch.tensor(list(widths)),
        "width": torch.tensor([len(part) for part in index]),
        "rotation": torch.cat(matrices),
        "levels": torch.cat([lloyd_max(bits)[0] for bits in widths]).to(torch.float32),
        "energy_lost": energy_lost(kept, energies),
    }
