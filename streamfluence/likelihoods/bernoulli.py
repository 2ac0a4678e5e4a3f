"""Yes or no, one or several independent ones an example."""

import math

import torch.nn.functional as F
from torch import Tensor

from streamfluence.errors import InputError
from streamfluence.likelihoods._tensors import same_shape
from streamfluence.likelihoods.base import Likelihood


class Bernoulli(Likelihood):
    """Independent logits; targets in [0, 1], the shape of the outputs."""

    def _check(self, outputs: Tensor, targets: Tensor) -> None:
        same_shape("bernoulli", outputs, targets)
        counted = targets[self._counted(targets)]
        low, high = (float(counted.min()), float(counted.max())) if counted.numel() else (0, 1)
        if not (low >= 0 and high <= 1):
            raise InputError(
                f"bernoulli targets must lie in [0, 1], but range from {low} to {high}; targets that "
                f"do not count are NaN, or ignore_index"
            )

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs), reduction="none")

    def _margins(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs * (2.0 * targets - 1.0)

    def _odds(self, outputs: Tensor) -> float:
        return math.log(2)

    def _root(self, outputs: Tensor, vector: Tensor) -> Tensor:
        p = outputs.sigmoid()
        return (p * (1 - p)).sqrt() * vector
