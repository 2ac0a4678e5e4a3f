"""What the model's outputs mean: the loss of an example, and the probes of its output Hessian.

For every likelihood the Hessian S of the loss in the outputs factors as B B^T.
A *probe* is the cotangent B e with e of independent random signs, a *column* is
B times one unit vector; both are pushed back through the model like a gradient.
Where the loss weights a position by w, the loss carries w and B carries sqrt(w).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from streamfluence.errors import InputError
from streamfluence.linalg import sign_block


class Likelihood:
    """Base of the likelihoods.

    Args:
        reduction: ``sum`` or ``mean`` of the loss over the positions of one example.
    """

    def __init__(self, reduction: str = "sum") -> None:
        if reduction not in ("sum", "mean"):
            raise InputError(f"reduction is {reduction!r}; it must be 'sum' or 'mean'")
        self.reduction = reduction

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise InputError when ``outputs`` and ``targets`` do not fit each other."""
        raise NotImplementedError

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each example, shape ``(example,)``, float32 or better."""
        outputs = _upcast(outputs)
        return _rows(self._losses(outputs, targets) * self._weights(targets, outputs)).sum(1)

    def margin(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the log-odds of the target, summed or averaged like the loss, ``(example,)``."""
        raise InputError(f"the likelihood {type(self).__name__.lower()} has no margin; use 'loss'")

    def probe(self, outputs: Tensor, targets: Tensor, seed: int, probe: int, ids: Tensor) -> Tensor:
        """Return the cotangent B e, shape of ``outputs``; e depends on ``seed``, ``probe`` and id only."""
        flat = outputs[0].numel()
        noise = sign_block(seed, ids.to(outputs.device), probe, flat).view(outputs.shape)
        return self._root(_upcast(outputs).detach(), targets, noise).to(outputs.dtype)

    def n_columns(self, outputs: Tensor) -> int:
        """Return how many columns B has for one example."""
        return outputs[0].numel()

    def column(self, outputs: Tensor, targets: Tensor, column: int) -> Tensor:
        """Return column ``column`` of B for every example, shape of ``outputs``."""
        unit = torch.zeros_like(_upcast(outputs)).flatten(1)
        unit[:, column] = 1.0
        root = self._root(_upcast(outputs).detach(), targets, unit.view(outputs.shape))
        return root.to(outputs.dtype)

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the unweighted loss of each position."""
        raise NotImplementedError

    def _root(self, outputs: Tensor, targets: Tensor, vector: Tensor) -> Tensor:
        """Return B @ vector, position by position."""
        raise NotImplementedError

    def _counted(self, targets: Tensor) -> Tensor:
        return torch.ones_like(targets, dtype=torch.bool)

    def _weights(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """Return the weight of each position in its example's loss, shape and device of ``targets``."""
        counted = _rows(self._counted(targets)).to(outputs.dtype)
        if self.reduction == "mean":
            counted = counted / counted.sum(1, keepdim=True).clamp_min(1.0)
        return counted.view(targets.shape)


class Categorical(Likelihood):
    """Softmax over the last axis; targets are class numbers of shape ``outputs.shape[:-1]``.

    Args:
        ignore_index: Target of positions that do not count (padding).
    """

    def __init__(self, reduction: str = "sum", ignore_index: int = -100) -> None:
        super().__init__(reduction)
        self.ignore_index = ignore_index

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        if outputs.dim() < 2 or outputs.shape[:-1] != targets.shape:
            raise InputError(
                f"a categorical likelihood needs targets of the shape of the outputs without the class "
                f"axis {tuple(outputs.shape[:-1])}, but forward returned outputs {tuple(outputs.shape)} "
                f"and targets {tuple(targets.shape)}; classes go last"
            )
        if targets.is_floating_point() or targets.dtype == torch.bool:
            raise InputError(f"categorical targets must be class numbers, but are {targets.dtype}")
        counted = targets[self._counted(targets)]
        if counted.numel() and (int(counted.min()) < 0 or int(counted.max()) >= outputs.shape[-1]):
            raise InputError(
                f"targets range from {int(counted.min())} to {int(counted.max())}, but the outputs have "
                f"{outputs.shape[-1]} classes; positions to skip carry ignore_index = {self.ignore_index}"
            )

    def margin(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs, safe = _upcast(outputs), self._safe(targets).unsqueeze(-1)
        target = outputs.gather(-1, safe)
        others = outputs.scatter(-1, safe, float("-inf")).logsumexp(-1)
        return _rows((target.squeeze(-1) - others) * self._weights(targets, outputs)).sum(1)

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = F.cross_entropy(
            outputs.flatten(0, -2), self._safe(targets).flatten(), reduction="none"
        )
        return losses.view(targets.shape)

    def _root(self, outputs: Tensor, targets: Tensor, vector: Tensor) -> Tensor:
        p = outputs.softmax(-1)
        root = p.sqrt()
        cotangent = root * vector - p * (root * vector).sum(-1, keepdim=True)
        return cotangent * self._weights(targets, outputs).sqrt().unsqueeze(-1)

    def _counted(self, targets: Tensor) -> Tensor:
        return targets != self.ignore_index

    def _safe(self, targets: Tensor) -> Tensor:
        return targets.to(torch.int64).masked_fill(~self._counted(targets), 0)


class Bernoulli(Likelihood):
    """Independent logits; targets in [0, 1], the shape of the outputs."""

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        _same_shape("bernoulli", outputs, targets)
        low, high = float(targets.min()), float(targets.max())
        if not (low >= 0 and high <= 1):
            raise InputError(
                f"bernoulli targets must lie in [0, 1], but range from {low} to {high}"
            )

    def margin(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = _upcast(outputs)
        return _rows(outputs * (2.0 * targets - 1.0) * self._weights(targets, outputs)).sum(1)

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs), reduction="none")

    def _root(self, outputs: Tensor, targets: Tensor, vector: Tensor) -> Tensor:
        p = outputs.sigmoid()
        return (p * (1 - p)).sqrt() * vector * self._weights(targets, outputs).sqrt()


class Gaussian(Likelihood):
    """Loss (output - target)^2 / (2 variance), summed over the outputs.

    Args:
        variance: Noise variance as the loss defines it; 1/2 makes the loss a plain squared error.
    """

    def __init__(self, reduction: str = "sum", variance: float = 1.0) -> None:
        super().__init__(reduction)
        if variance <= 0:
            raise InputError(f"variance must be positive, got {variance}")
        self.variance = variance

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        _same_shape("gaussian", outputs, targets)

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets.to(outputs)) ** 2 / (2 * self.variance)

    def _root(self, outputs: Tensor, targets: Tensor, vector: Tensor) -> Tensor:
        return vector * self._weights(targets, outputs).sqrt() / self.variance**0.5


LIKELIHOODS = {"categorical": Categorical, "bernoulli": Bernoulli, "gaussian": Gaussian}


def _upcast(outputs: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 stay."""
    return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs


def _rows(values: Tensor) -> Tensor:
    """Return ``(example, everything else)``."""
    return values.reshape(len(values), -1)


def _same_shape(name: str, outputs: Tensor, targets: Tensor) -> None:
    if outputs.shape != targets.shape:
        raise InputError(
            f"a {name} likelihood needs targets of the outputs' shape {tuple(outputs.shape)}, but "
            f"forward returned targets {tuple(targets.shape)}; broadcasting them would be wrong"
        )
