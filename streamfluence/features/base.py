"""Contract of a feature: what is measured of an example at one checkpoint.

Laws: the batch split does not change rows; a batch equals its examples taken one at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Measured:
    """Rows of one batch.

    Attributes:
        rows: Shape ``(example, feature)``, float32, not whitened.
        value: Loss (or the query's measurement) of each example, ``(example,)``, float32.
    """

    rows: Tensor
    value: Tensor


class Feature:
    """Base of every feature."""

    @property
    def width(self) -> int:
        """Number of features of a row."""
        raise NotImplementedError

    def measure(self, batch: Any, measurement: str = "loss", prove: Sequence[int] = ()) -> Measured:
        """Return the rows of one batch of tensors on the feature's device.

        Args:
            measurement: What is measured of an example.
            prove: Positions in the batch whose rows are compared with plain autograd.
        """
        raise NotImplementedError
