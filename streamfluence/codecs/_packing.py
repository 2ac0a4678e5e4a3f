"""Codes of 1 to 8 bits in whole bytes, laid out so that a CPU unpacks them by table look-ups.

A band of 8 g codes of b bits is b planes of g bytes. Column c of the planes is
group c: eight codes in one little-endian integer of 8 b bits, plane 0 its
lowest byte. A look-up takes ``LANES[b]`` neighbouring codes of a group at once
and yields as many levels, which lie side by side in the band; look-up l of
group c yields the coordinates from ``(l * g + c) * LANES[b]`` on. For 1, 2, 4
and 8 bits a look-up is exactly one byte, so the bytes are in the plain order of
the coordinates. With planes instead of whole groups every step of unpacking
runs over contiguous bytes (3 bits: 0.44 instead of 0.75 ns a coordinate).
"""

from itertools import product

import torch
from torch import Tensor

GROUP = 8
LANES = {1: 8, 2: 4, 3: 4, 4: 2, 5: 2, 6: 2, 7: 2, 8: 1}
# Numbers as wide as 1, 2 or 4 float32: on a CPU, index_select of single numbers takes 0.2-0.4 ns a
# coordinate, of short rows 0.4-1.4 (torch 2.13; take, gather, embedding and 16-bit tables are slower).
_WIDE = {1: torch.float32, 2: torch.int64, 4: torch.complex128}


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return codes as bytes, uint8, shape ``(example, width * bits / 8)``.

    Args:
        codes: 0 to ``2**bits - 1``, any integer dtype, shape ``(example, width)``, width a
            multiple of 8.
    """
    words = _group_words(codes, bits)
    planes = [(words >> (8 * plane)) & 255 for plane in range(bits)]
    return torch.cat(planes, dim=1).to(torch.uint8)


def lookup_table(levels: Tensor, bits: int) -> Tensor:
    """Return the levels of every value of ``LANES[bits]`` codes, float32, one row a value."""
    entries = torch.tensor(list(product(range(len(levels)), repeat=LANES[bits])))
    # product varies its last factor fastest; the first code lies in the lowest bits.
    return levels.to(torch.float32)[entries.flip(1).to(levels.device)]


def unpack(packed: Tensor, bits: int, table: Tensor, index: Tensor, out: Tensor) -> Tensor:
    """Write the levels of ``packed`` into ``out`` and return it.

    Args:
        packed: What ``pack`` returned, or columns of it; shape ``(example, byte)``.
        table: What ``lookup_table`` returned.
        index: Scratch, int32, contiguous, ``out.numel() / LANES[bits]`` elements.
        out: float32, contiguous, shape ``(example, width)``.
    """
    if LANES[bits] * bits == 8:
        index.view(packed.shape).copy_(packed)
    else:
        _read_planes(packed, bits, index)
    _select(table, index.view(-1), out)
    return out


def _group_words(codes: Tensor, bits: int) -> Tensor:
    """Return the integer of each group, int64, shape ``(example, group)``."""
    lanes = LANES[bits]
    codes = codes.unflatten(1, (GROUP // lanes, -1, lanes))
    words = torch.zeros_like(codes[:, 0, :, 0], dtype=torch.int64)
    for place in range(GROUP):
        words |= codes[:, place // lanes, :, place % lanes].to(torch.int64) << (place * bits)
    return words


def _read_planes(packed: Tensor, bits: int, index: Tensor) -> None:
    """Write to ``index`` the values of look-ups that straddle bytes; int16, because none has 16 bits."""
    width = LANES[bits] * bits
    planes = packed.unflatten(1, (bits, -1)).to(torch.int16)
    values = index.view(len(packed), GROUP // LANES[bits], -1)
    for lookup in range(values.shape[1]):
        plane, shift = divmod(lookup * width, 8)
        value = planes[:, plane] >> shift
        for higher in range(1, -(-(shift + width) // 8)):
            value |= planes[:, plane + higher] << (8 * higher - shift)
        values[:, lookup] = value & ((1 << width) - 1)


def _select(table: Tensor, index: Tensor, out: Tensor) -> None:
    lanes = table.shape[1]
    if table.is_cuda:
        # A GPU copies whole rows of a table far slower than it looks up single numbers.
        places = index.long().unsqueeze(1) * lanes + torch.arange(lanes, device=index.device)
        torch.take(table, places.view(-1), out=out.view(-1))
    elif lanes in _WIDE:
        wide = _WIDE[lanes]
        torch.index_select(table.view(wide).view(-1), 0, index, out=out.view(wide).view(-1))
    else:
        torch.index_select(table, 0, index, out=out.view(-1, lanes))
