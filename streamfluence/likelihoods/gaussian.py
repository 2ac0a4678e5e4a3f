"""A number with Gaussian noise of a known scale."""

from torch import Tensor

from streamfluence.errors import InputError
from streamfluence.likelihoods._tensors import same_shape
from streamfluence.likelihoods.base import Likelihood


class Gaussian(Likelihood):
    """Loss (output - target)^2 / (2 variance), summed over the outputs.

    Args:
        variance: Noise variance as the loss defines it; 1/2 makes the loss a plain squared error.
    """

    def __init__(
        self,
        reduction: str = "sum",
        variance: float = 1.0,
        ignore_index: float | None = None,
    ) -> None:
        super().__init__(reduction, ignore_index)
        if variance <= 0:
            raise InputError(f"variance must be positive, got {variance}")
        self.variance = variance

    def _check(self, outputs: Tensor, targets: Tensor) -> None:
        same_shape("gaussian", outputs, targets)

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets.to(outputs)) ** 2 / (2 * self.variance)

    def _root(self, outputs: Tensor, vector: Tensor) -> Tensor:
        scaled: Tensor = vector / self.variance**0.5
        return scaled
