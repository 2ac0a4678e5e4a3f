"""Contract of a codec: how one whitened row is stored in a given number of bytes.

``allocate`` decides once, from the energies of the coordinates, what is kept and
with how many bits; its arrays are saved with the sketch. Training rows go
through ``encode``; queries stay float32 and go through ``query``, so that

    scores = codec.query(queries) @ codec.decode(encoded).T

estimates ``queries @ rows.T``. Laws: zero rows survive; non-finite rows are
refused; ``decode(encode(rows))`` is within ``tolerance`` of ``query(rows)``.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamfluence.linalg import State


@dataclass(frozen=True)
class Encoded:
    """Stored form of a block of rows.

    Attributes:
        codes: Shape ``(example, code)``; uint8 when packed, else the codec's dtype.
        scale: Shape ``(example, band)``; width 0 when the codec needs none.
    """

    codes: Tensor
    scale: Tensor


class Codec:
    """Base of every codec; built from the arrays that ``allocate`` returned.

    Attributes:
        stored: Number of coordinates that are stored.
        stored_bytes: Bytes of one row, codes and scales together.
        tolerance: Bound on ``|decode(encode(x)) - query(x)|_2 / |query(x)|_2``, typical rows; 0 when exact.
    """

    stored: int
    stored_bytes: int
    tolerance: float

    @classmethod
    def allocate(cls, energies: Tensor, row_bytes: int | None, seed: int) -> State:
        """Return the arrays that define the codec; a member's own options are further keywords.

        Args:
            energies: e_j >= 0 of each coordinate of the whitened row, shape ``(feature,)``, float64.
            row_bytes: Budget of one row, scales included; None stores everything.
            seed: Decides rotations.

        Raises:
            BudgetError: If nothing useful fits in ``row_bytes``.
        """
        raise NotImplementedError

    def __init__(self, arrays: State) -> None:
        raise NotImplementedError

    def to(self, device: torch.device | str) -> "Codec":
        """Return the codec with its arrays on ``device``."""
        raise NotImplementedError

    def encode(self, rows: Tensor) -> Encoded:
        """Return the stored form of ``rows``, shape ``(example, feature)`` float32; runs on their device.

        Raises:
            ValueError: If a row is not finite.
        """
        raise NotImplementedError

    def decode(self, encoded: Encoded, out: Tensor | None = None) -> Tensor:
        """Return float32 ``(example, stored)``, written into ``out`` when given."""
        raise NotImplementedError

    def query(self, rows: Tensor) -> Tensor:
        """Return queries in stored coordinates, shape ``(query, stored)``, float32."""
        raise NotImplementedError

    def product(self, queries: Tensor, encoded: Encoded, out: Tensor | None = None) -> Tensor:
        """Return ``decode(encoded) @ queries.T``, shape ``(example, query)``; members may do it faster."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Return what a record should say (JSON-able), e.g. how many directions have how many bits."""
        return {}


def shares(codec: Codec, rows: Tensor, encoded: Encoded) -> dict[str, float]:
    """Return what storing did to ``rows``, as sums over them; zero rows count nowhere.

    Returns:
        ``rows``: how many; ``error``: sum of ``|decode - query|^2 / |query|^2``, the error of the
        coordinates that are stored; ``kept``: sum of ``|query|^2 / |row|^2``, the energy in them.
    """
    wanted, energy = codec.query(rows).double(), rows.double().square().sum(1)
    stored = wanted.square().sum(1)
    error = (codec.decode(encoded).double() - wanted).square().sum(1)
    some = stored > 0
    sums = [some.sum(), (error[some] / stored[some]).sum(), (stored[some] / energy[some]).sum()]
    return dict(zip(("rows", "error", "kept"), torch.stack(sums).tolist(), strict=True))
