"""The loss of each example, and over several checkpoints its trajectory."""

from typing import Any

from torch import Tensor

from streamfluence.errors import InputError
from streamfluence.features._forward import OfForward
from streamfluence.features.base import Forward


class Loss(OfForward):
    """One number: the loss of the example (of a query: its measurement) at a checkpoint.

    A score is the inner product of two trajectories, ``sum_c w_c loss_c(i) loss_c(q)``, with the
    weights of the checkpoints, and never a prediction. Losses are seldom negative, so without
    ``centred`` a large score says that both examples are hard, and little else; with it, positive
    scores are of examples whose losses rise and fall at the same checkpoints as the query's, negative
    ones of those that do so at opposite ones.

    Args:
        centred: Take the mean over checkpoints, by their weights, off both trajectories: a score is then
            their covariance times the sum of the weights. Needs two checkpoints, and curvature.name =
            ``identity``.
    """

    codec = "float32"
    smallest = 1e-2  # losses near 0 are differences of numbers of size 1
    block = "loss"
    what = "the loss"

    def __init__(self, *, centred: bool = False) -> None:
        if not isinstance(centred, bool):
            raise InputError(f"feature.options.centred = {centred!r} is neither true nor false")
        self.centred = centred

    def meaning(self, measurement: str) -> str:
        centred = ", each less its mean over checkpoints" if self.centred else ""
        sign = (
            "positive: both rise and fall at the same checkpoints, negative: at opposite ones"
            if self.centred
            else "large: both are large at the same checkpoints"
        )
        return (
            f"score = inner product of the example's training loss and the query's {measurement} over "
            f"checkpoints, by their weights{centred}; {sign}; a similarity, which predicts nothing of "
            "what removing the example does"
        )

    def unit(self, measurement: str) -> str:
        return f"training loss times {measurement}, summed over checkpoints by their weights"

    def vectors(self, forward: Forward, batch: Any, measurement: str) -> tuple[Tensor, Tensor]:
        task, model = self._ground.task, self._ground.model
        value = self._values.of(lambda r: task.measure(measurement, r), forward(model, batch))
        return value[:, None], value
