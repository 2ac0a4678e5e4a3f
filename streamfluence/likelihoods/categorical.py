"""One of several classes, or a distribution over them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from streamfluence.errors import InputError
from streamfluence.likelihoods._tensors import is_soft
from streamfluence.likelihoods.base import Likelihood

# How far the sum of a distribution may be off, which makes the curvature off by as much.
_OFF = {torch.bfloat16: 2e-2, torch.float16: 2e-3}
_OFF_SINGLE = 1e-4


class Categorical(Likelihood):
    """Softmax over the last axis of the outputs.

    Targets are class numbers, shape ``outputs.shape[:-1]``, or distributions over the classes
    (soft labels): floats of the shape of the outputs that sum to one. A distribution of NaN
    does not count.

    Args:
        ignore_index: Target of positions that do not count (padding).
    """

    def __init__(self, reduction: str = "sum", ignore_index: float | None = -100) -> None:
        super().__init__(reduction, ignore_index)

    def _check(self, outputs: Tensor, targets: Tensor) -> None:
        if outputs.dim() < 2:
            raise InputError(
                f"a categorical likelihood needs one logit a class, outputs (example, ..., class), but "
                f"forward returned {tuple(outputs.shape)}; for one number an example the likelihood is "
                f"'bernoulli' or 'gaussian'"
            )
        if is_soft(targets) and targets.shape == outputs.shape:
            self._check_soft(targets)
            return
        if outputs.shape[:-1] != targets.shape:
            raise InputError(
                f"a categorical likelihood needs targets of the shape of the outputs without the class "
                f"axis {tuple(outputs.shape[:-1])}, but forward returned outputs {tuple(outputs.shape)} "
                f"and targets {tuple(targets.shape)}; classes go last"
            )
        if is_soft(targets) or targets.dtype == torch.bool:
            raise InputError(
                f"categorical targets must be class numbers, or floats of the outputs' shape that sum "
                f"to one, but are {targets.dtype} of shape {tuple(targets.shape)}"
            )
        counted = targets[self._counted(targets)]
        if counted.numel() and (int(counted.min()) < 0 or int(counted.max()) >= outputs.shape[-1]):
            raise InputError(
                f"targets range from {int(counted.min())} to {int(counted.max())}, but the outputs have "
                f"{outputs.shape[-1]} classes; positions to skip carry ignore_index = {self.ignore_index}"
            )

    def _check_soft(self, targets: Tensor) -> None:
        counted = targets[self._counted(targets)].float()
        if not counted.numel():
            return
        off = float((counted.sum(-1) - 1).abs().max())
        if not (float(counted.min()) >= 0 and off <= _OFF.get(targets.dtype, _OFF_SINGLE)):
            raise InputError(
                f"soft labels must be distributions over the classes, but have entries from "
                f"{float(counted.min()):.3g} and sums up to {off:.3g} off one; positions to skip have "
                f"weight 0, or NaN for every class"
            )

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if is_soft(targets):
            return -(targets.to(outputs) * outputs.log_softmax(-1)).sum(-1)
        flat = F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none")
        return flat.view(targets.shape)

    def _margins(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if is_soft(targets):
            # Odds of the classes in proportion to the label: those of the target if it is one class.
            mine = targets.to(outputs)
            return (outputs + mine.log()).logsumexp(-1) - (
                outputs + (1 - mine).clamp_min(0).log()
            ).logsumexp(-1)
        target = outputs.gather(-1, targets.unsqueeze(-1))
        others = outputs.scatter(-1, targets.unsqueeze(-1), float("-inf")).logsumexp(-1)
        return target.squeeze(-1) - others

    def _odds(self, outputs: Tensor) -> float:
        return math.log(outputs.shape[-1])

    def _root(self, outputs: Tensor, vector: Tensor) -> Tensor:
        p = outputs.softmax(-1)
        root = p.sqrt()
        return root * vector - p * (root * vector).sum(-1, keepdim=True)

    def _counted(self, targets: Tensor) -> Tensor:
        if is_soft(targets):
            return ~targets.isnan().all(-1)
        return super()._counted(targets)

    def _safe(self, targets: Tensor) -> Tensor:
        missing = ~self._counted(targets)
        if is_soft(targets):
            return targets.masked_fill(missing.unsqueeze(-1), 1.0 / targets.shape[-1])
        return targets.to(torch.int64).masked_fill(missing, 0)
