"""What all gradients share that are sums of outer products over positions."""

from torch import Tensor

from streamfluence.capture.base import Use


class OuterSum(Use):
    """A sum of outer products, however its left rows are given; it has ``right_rows``."""

    @property
    def tensor(self) -> Tensor:
        return self.right_rows

    @property
    def positions(self) -> int:
        return self.right_rows.shape[2]
