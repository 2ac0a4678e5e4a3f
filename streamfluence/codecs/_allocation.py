"""Give each group of 8 coordinates its bits: reverse water-filling with whole bits and bands that cost.

One byte buys one bit for the eight coordinates of a group. All groups with
equal bits form a band, and each band costs its scale. Groups come by
descending energy and a better group never has fewer bits, so an allocation is
a descending staircase; dynamic programming over (groups, bits of the last one,
bytes used) finds the best staircase that fits. The optimum over everything
that fits never exceeds the budget and never gets worse when the budget grows.

Source:
    Cover and Thomas, Elements of Information Theory (2006), section 10.3.3, for the continuous form.
"""

from collections.abc import Sequence

import numpy as np

SCALE_BYTES = 2
MOST_ENTRIES = 1 << 30  # of the table of ways; where there would be more, groups are joined


def allocate(energies: np.ndarray, row_bytes: int, distortion: Sequence[float]) -> np.ndarray:
    """Return the bits of each group that lose the least energy within ``row_bytes``.

    Args:
        energies: Of each group, descending, shape ``(group,)``, float64.
        row_bytes: For codes and the scales of the bands in use, ``SCALE_BYTES`` each.
        distortion: Share of energy lost at 0, 1, ... bits, decreasing; its length sets the most bits.

    Returns:
        Shape ``(group,)``, int64, descending; zeros where a group is not stored.
    """
    joined = _joined(int(np.count_nonzero(energies)), row_bytes, len(distortion))
    sums = (
        np.add.reduceat(energies, np.arange(0, len(energies), joined)) if joined > 1 else energies
    )
    # A scale takes a whole unit of ``joined`` bytes, so some bytes may be left, and never too few.
    bits = _best(sums, row_bytes // joined, distortion, -(-SCALE_BYTES // joined))
    return np.repeat(bits, joined)[: len(energies)]


def _joined(useful: int, row_bytes: int, levels: int) -> int:
    """Return how many groups share their bits, and how many bytes are one unit: 1 but for huge rows."""
    joined, budget = 1, min(row_bytes, levels * useful)
    while (useful // joined) * levels * (budget // joined) > MOST_ENTRIES:
        joined *= 2
    return joined


def _best(
    energies: np.ndarray, row_bytes: int, distortion: Sequence[float], scale_bytes: int
) -> np.ndarray:
    """Return the bits of each group, see ``allocate``, where a scale costs ``scale_bytes``."""
    most = len(distortion) - 1
    useful = int(np.count_nonzero(energies))
    budget = max(min(row_bytes, most * (useful + scale_bytes)), 0)
    useful = max(min(useful, budget - scale_bytes), 0)
    # lost[b, u]: least energy lost so far, the last group at b bits, u bytes used; row 0 is the start.
    lost = np.full((most + 1, budget + 1), np.inf)
    lost[0, 0] = 0.0
    came_from = np.zeros((useful, most + 1, budget + 1), dtype=np.uint8)
    dropped = energies.sum() - np.cumsum(energies)
    best, end = float(energies.sum()), (0, 0, 0)
    for group in range(useful):
        loss = energies[group] * np.asarray(distortion)
        lost = _extend(lost, loss, came_from[group], scale_bytes)
        bits, used = np.unravel_index(np.argmin(lost), lost.shape)
        total = lost[bits, used] + dropped[group]
        if total < best:
            best, end = float(total), (group + 1, int(bits), int(used))
    return _trace(came_from, end, len(energies), scale_bytes)


def _extend(
    lost: np.ndarray, loss: np.ndarray, came_from: np.ndarray, scale_bytes: int
) -> np.ndarray:
    """Return ``lost`` with one more group, which loses ``loss[b]`` at b bits.

    ``came_from[b, u]`` becomes the bits of the group before it on the best way there.
    """
    after = np.full_like(lost, np.inf)
    # The best among the start and the levels above the present one: from there a band is opened.
    above, above_bits = lost[0], np.zeros(lost.shape[1], dtype=np.uint8)
    for bits in range(len(lost) - 1, 0, -1):
        after[bits, bits:], came_from[bits] = lost[bits, : -bits or None], bits
        opened = after[bits, bits + scale_bytes :]
        better = above[: len(opened)] < opened
        opened[better] = above[: len(opened)][better]
        came_from[bits, bits + scale_bytes :][better] = above_bits[: len(opened)][better]
        after[bits] += loss[bits]
        closer = lost[bits] < above
        above = np.where(closer, lost[bits], above)
        above_bits[closer] = bits
    return after


def _trace(
    came_from: np.ndarray, end: tuple[int, int, int], n_groups: int, scale_bytes: int
) -> np.ndarray:
    """Return the bits along the path that leads to ``end``."""
    result = np.zeros(n_groups, dtype=np.int64)
    groups, bits, used = end
    for group in range(groups - 1, -1, -1):
        result[group] = bits
        before = int(came_from[group, bits, used])
        used -= bits if before == bits else bits + scale_bytes
        bits = before
    assert used == 0, "the bytes of an allocation do not add up"
    return result
