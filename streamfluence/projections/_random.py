"""Random matrices and draws made from counters, so that every device and batch split gets the same ones."""

import math

import torch
from torch import Tensor

from streamfluence.linalg import hash_counters

_HALF = (1 << 32) - 1


def gaussians(seed: int, counters: Tensor, width: int) -> Tensor:
    """Return independent standard Gaussians, shape ``(counter, width)``, float32.

    Row n depends on ``counters[n]``, ``seed`` and ``width`` alone. One hash gives two
    Gaussians by the Box-Muller transform in float64; the largest possible is 6.7.
    """
    pairs = torch.arange((width + 1) // 2, device=counters.device)
    bits = hash_counters(seed, counters[:, None], pairs)
    high, low = (bits >> 32) & _HALF, bits & _HALF
    radius = high.double().add_(0.5).div_(1 << 32).log_().mul_(-2).sqrt_()
    angle = low.double().mul_(2 * math.pi / (1 << 32))
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :width].float()


def slots(seed: int, counters: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return for each counter a uniform slot below ``count`` (int64) and an independent sign (float32)."""
    bits = hash_counters(seed, counters)
    return ((bits >> 1) & ((1 << 62) - 1)) % count, 1.0 - 2.0 * (bits & 1).float()


def draw_coordinates(seed: int, total: int, count: int) -> Tensor:
    """Return ``count`` different integers below ``total``, sorted, every subset equally likely.

    Draws with replacement and keeps the first arrivals: the cost follows ``count``, not ``total``.
    """
    if count >= total:
        return torch.arange(total)
    tries = 2 * count + 64
    while True:
        drawn, _ = slots(seed, torch.arange(tries), total)
        values, first = _first_arrivals(drawn)
        if len(values) >= count:
            return values[first.argsort()[:count]].sort().values
        tries *= 2


def _first_arrivals(drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Return the different values drawn and the position at which each came first."""
    values, which = drawn.unique(return_inverse=True)
    first = torch.full_like(values, len(drawn))
    return values, first.scatter_reduce_(0, which, torch.arange(len(drawn)), "amin")
