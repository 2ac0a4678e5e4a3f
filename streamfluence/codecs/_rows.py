"""Checks that every codec makes on the rows it is given."""

import torch
from torch import Tensor


def checked(rows: Tensor, features: int) -> Tensor:
    """Return ``rows`` as float32, shape ``(example, feature)``.

    Raises:
        ValueError: If the rows have another width than the codec was planned for.
    """
    if rows.ndim != 2 or rows.shape[1] != features:
        raise ValueError(
            f"rows have shape {tuple(rows.shape)}, but the codec was planned for "
            f"(example, {features}); allocate again from the energies of these rows"
        )
    return rows.to(torch.float32)


def refuse_non_finite(rows: Tensor) -> None:
    """Raise ``ValueError`` that counts and locates the rows that are not finite."""
    # A maximum keeps NaN and infinity, and takes a fifth of the time of isfinite().all().
    bad = ~torch.isfinite(rows.abs().amax(dim=1))
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ValueError(
            f"{int(bad.sum())} of {len(rows)} rows are not finite (the first is row {first} of "
            "this block); zero and flag them before encoding"
        )
