"""What the model's outputs mean: the loss of an example, and the probes of its output Hessian.

For every likelihood the Hessian S of the loss in the outputs factors as B B^T.
A *probe* is the cotangent B e with e of independent random signs, a *column* is
B times one unit vector; both are pushed back through the model like a gradient.
Where the loss weights a position by w, the loss carries w and B carries sqrt(w).

A position is what has one loss: one output of an example, or for class logits all
of them together. It does not count, in loss, margin, probes and columns alike,
where its target is NaN or the ignore index, or where its weight is zero.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from streamfluence.errors import InputError
from streamfluence.linalg import sign_block

# How far the sum of a distribution may be off, which makes the curvature off by as much.
_OFF = {torch.bfloat16: 2e-2, torch.float16: 2e-3}
_OFF_SINGLE = 1e-4


class Likelihood:
    """Base of the likelihoods.

    ``weights`` of positions, where a method takes them, have the shape of the positions, or
    ``(example,)`` for one weight an example.

    Args:
        reduction: ``sum`` or ``mean`` of the loss over the positions of one example that count;
            weights multiply either.
        ignore_index: Target of positions that do not count; None means NaN alone.
    """

    def __init__(self, reduction: str = "sum", ignore_index: float | None = None) -> None:
        if reduction not in ("sum", "mean"):
            raise InputError(f"reduction is {reduction!r}; it must be 'sum' or 'mean'")
        if isinstance(ignore_index, bool) or not isinstance(ignore_index, int | float | None):
            raise InputError(f"ignore_index is {ignore_index!r}; it must be a number")
        self.reduction, self.ignore_index = reduction, ignore_index

    def check(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Raise InputError when outputs, targets and weights do not fit each other."""
        self._check(outputs, targets)
        if weights is not None:
            _check_weights(weights, self._counted(targets).shape)

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the loss of each example, shape ``(example,)``, float32 or better."""
        outputs = _upcast(outputs)
        losses = self._losses(outputs, self._safe(targets))
        return _rows(losses * self._weights(outputs, targets, weights)).sum(1)

    def chance(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the loss of equal odds for every class, of each example, ``(example,)``."""
        outputs = _upcast(outputs)
        return self._odds(outputs) * _rows(self._weights(outputs, targets, weights)).sum(1)

    def margin(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the log-odds of the target, summed or averaged like the loss, ``(example,)``."""
        outputs = _upcast(outputs)
        margins = self._margins(outputs, self._safe(targets))
        return _rows(margins * self._weights(outputs, targets, weights)).sum(1)

    def probe(
        self,
        outputs: Tensor,
        targets: Tensor,
        seed: int,
        probe: int,
        ids: Tensor,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return the cotangent B e, shape of ``outputs``; e depends on ``seed``, ``probe`` and id only."""
        flat = outputs[0].numel()
        noise = sign_block(seed, ids.to(outputs.device), flat, probe).view(outputs.shape)
        return self._cotangent(outputs, targets, noise, weights)

    def n_columns(self, outputs: Tensor) -> int:
        """Return how many columns B has for one example."""
        return outputs[0].numel()

    def column(
        self, outputs: Tensor, targets: Tensor, column: int, weights: Tensor | None = None
    ) -> Tensor:
        """Return column ``column`` of B for every example, shape of ``outputs``."""
        unit = _rows(torch.zeros_like(_upcast(outputs)))
        unit[:, column] = 1.0
        return self._cotangent(outputs, targets, unit.view(outputs.shape), weights)

    def with_nan(self, targets: Tensor) -> Tensor:
        """Return targets of which those that do not count are NaN; not for class numbers."""
        return targets.to(torch.float32).masked_fill(~self._counted(targets), float("nan"))

    def _cotangent(
        self, outputs: Tensor, targets: Tensor, vector: Tensor, weights: Tensor | None
    ) -> Tensor:
        upcast = _upcast(outputs).detach()
        root = self._root(upcast, vector)
        roots = self._weights(upcast, targets, weights).sqrt()
        return (root * roots.view(*roots.shape, *[1] * (root.dim() - roots.dim()))).to(
            outputs.dtype
        )

    def _check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise InputError when outputs and targets do not fit each other."""
        raise NotImplementedError

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the unweighted loss of each position; targets that do not count are harmless."""
        raise NotImplementedError

    def _margins(self, outputs: Tensor, targets: Tensor) -> Tensor:
        raise InputError(f"the likelihood {type(self).__name__.lower()} has no margin; use 'loss'")

    def _odds(self, outputs: Tensor) -> float:
        raise InputError(f"the likelihood {type(self).__name__.lower()} has no odds")

    def _root(self, outputs: Tensor, vector: Tensor) -> Tensor:
        """Return B @ vector, position by position, without weights."""
        raise NotImplementedError

    def _counted(self, targets: Tensor) -> Tensor:
        """Return which positions have a target, in the shape of the positions."""
        counted = ~targets.isnan() if targets.is_floating_point() else _all_true(targets)
        return counted if self.ignore_index is None else counted & (targets != self.ignore_index)

    def _safe(self, targets: Tensor) -> Tensor:
        """Return the targets with a harmless one in every position that has none."""
        return targets.masked_fill(~self._counted(targets), 0)

    def _weights(self, outputs: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Return the weight of each position in its example's loss, in the shape of the positions."""
        counted = self._counted(targets)
        spread = None if weights is None else _spread(weights, counted.shape)
        if spread is not None:
            counted = counted & (spread != 0)
        shares = counted.to(outputs.dtype)
        if self.reduction == "mean":
            total = _rows(shares).sum(1).clamp_min(1.0)
            shares = shares / _spread(total, shares.shape)
        return shares if spread is None else shares * spread.to(outputs.dtype)


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
        if _is_soft(targets) and targets.shape == outputs.shape:
            self._check_soft(targets)
            return
        if outputs.shape[:-1] != targets.shape:
            raise InputError(
                f"a categorical likelihood needs targets of the shape of the outputs without the class "
                f"axis {tuple(outputs.shape[:-1])}, but forward returned outputs {tuple(outputs.shape)} "
                f"and targets {tuple(targets.shape)}; classes go last"
            )
        if _is_soft(targets) or targets.dtype == torch.bool:
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
        if _is_soft(targets):
            return -(targets.to(outputs) * outputs.log_softmax(-1)).sum(-1)
        flat = F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none")
        return flat.view(targets.shape)

    def _margins(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if _is_soft(targets):
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
        if _is_soft(targets):
            return ~targets.isnan().all(-1)
        return super()._counted(targets)

    def _safe(self, targets: Tensor) -> Tensor:
        missing = ~self._counted(targets)
        if _is_soft(targets):
            return targets.masked_fill(missing.unsqueeze(-1), 1.0 / targets.shape[-1])
        return targets.to(torch.int64).masked_fill(missing, 0)


class Bernoulli(Likelihood):
    """Independent logits; targets in [0, 1], the shape of the outputs."""

    def _check(self, outputs: Tensor, targets: Tensor) -> None:
        _same_shape("bernoulli", outputs, targets)
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
        _same_shape("gaussian", outputs, targets)

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets.to(outputs)) ** 2 / (2 * self.variance)

    def _root(self, outputs: Tensor, vector: Tensor) -> Tensor:
        return vector / self.variance**0.5


LIKELIHOODS = {"categorical": Categorical, "bernoulli": Bernoulli, "gaussian": Gaussian}


def _upcast(outputs: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 stay."""
    return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs


def _rows(values: Tensor) -> Tensor:
    """Return ``(example, everything else)``."""
    return values.reshape(len(values), -1)


def _is_soft(targets: Tensor) -> bool:
    return targets.is_floating_point()


def _all_true(targets: Tensor) -> Tensor:
    return torch.ones_like(targets, dtype=torch.bool)


def _spread(values: Tensor, shape: torch.Size) -> Tensor:
    """Return values of positions, or one an example, in the shape of the positions."""
    if values.shape == shape:
        return values
    return values.view(len(values), *[1] * (len(shape) - 1)).expand(shape)


def _check_weights(weights: Tensor, positions: torch.Size) -> None:
    if weights.shape not in (positions, positions[:1]):
        raise InputError(
            f"weights must have one entry an example {tuple(positions[:1])}, or one a position "
            f"{tuple(positions)}, but forward returned {tuple(weights.shape)}"
        )
    if weights.requires_grad:
        raise InputError("weights must not depend on the model's weights; detach them in forward")
    lowest = float(weights.min()) if weights.numel() else 0.0
    if not (lowest >= 0 and bool(torch.isfinite(weights).all())):
        raise InputError(
            f"weights must be finite and not negative, but the lowest is {lowest:.3g}; a loss with "
            f"negative weights has no Gauss-Newton matrix"
        )


def _same_shape(name: str, outputs: Tensor, targets: Tensor) -> None:
    if outputs.shape != targets.shape:
        raise InputError(
            f"a {name} likelihood needs targets of the outputs' shape {tuple(outputs.shape)}, but "
            f"forward returned targets {tuple(targets.shape)}; broadcasting them would be wrong"
        )
