"""Non-negative bfloat16 numbers as their bits in uint16: the range of float32 in two bytes.

Zarr and many readers know no bfloat16; the bits are exact on every device
because they are made in integer arithmetic.
"""

import torch
from torch import Tensor

_LARGEST = 0x7F7F  # the bits of the largest finite number


def to_bits(values: Tensor) -> Tensor:
    """Return float32 ``values >= 0``, rounded to the nearest bfloat16 (ties to even), as uint16."""
    bits = values.contiguous().view(torch.int32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # Through int16, which every device can cast to; a number that is not negative fits.
    return nearest.clamp_max(_LARGEST).to(torch.int16).view(torch.uint16)


def from_bits(bits: Tensor) -> Tensor:
    """Return the float32 values of uint16 ``bits``."""
    # A sign-extended upper half is shifted out, so int16 reads the same as uint16.
    return (bits.contiguous().view(torch.int16).to(torch.int32) << 16).view(torch.float32)
