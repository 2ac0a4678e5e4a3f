"""What the model's outputs mean: the loss of an example, and the probes of its output Hessian.

For every likelihood the Hessian S of the loss in the outputs factors as B B^T.
A *probe* is the cotangent B e with e of independent random signs, a *column* is
B times one unit vector; both are pushed back through the model like a gradient.
Where the loss weights a position by w, the loss carries w and B carries sqrt(w).

A position is what has one loss: one output of an example, or for class logits all
of them together. It does not count, in loss, margin, probes and columns alike,
where its target is NaN or the ignore index, or where its weight is zero.
"""

import torch
from torch import Tensor

from streamfluence.errors import InputError
from streamfluence.likelihoods._tensors import all_true, check_weights, rows_of, spread, upcast
from streamfluence.linalg import sign_block


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
            check_weights(weights, self._counted(targets).shape)

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the loss of each example, shape ``(example,)``, float32 or better."""
        outputs = upcast(outputs)
        losses = self._losses(outputs, self._safe(targets))
        return rows_of(losses * self._weights(outputs, targets, weights)).sum(1)

    def chance(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the loss of equal odds for every class, of each example, ``(example,)``."""
        outputs = upcast(outputs)
        return self._odds(outputs) * rows_of(self._weights(outputs, targets, weights)).sum(1)

    def margin(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the log-odds of the target, summed or averaged like the loss, ``(example,)``."""
        outputs = upcast(outputs)
        margins = self._margins(outputs, self._safe(targets))
        return rows_of(margins * self._weights(outputs, targets, weights)).sum(1)

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
        unit = rows_of(torch.zeros_like(upcast(outputs)))
        unit[:, column] = 1.0
        return self._cotangent(outputs, targets, unit.view(outputs.shape), weights)

    def with_nan(self, targets: Tensor) -> Tensor:
        """Return targets of which those that do not count are NaN; not for class numbers."""
        return targets.to(torch.float32).masked_fill(~self._counted(targets), float("nan"))

    def _cotangent(
        self, outputs: Tensor, targets: Tensor, vector: Tensor, weights: Tensor | None
    ) -> Tensor:
        wide = upcast(outputs).detach()
        root = self._root(wide, vector)
        roots = self._weights(wide, targets, weights).sqrt()
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
        counted = ~targets.isnan() if targets.is_floating_point() else all_true(targets)
        return counted if self.ignore_index is None else counted & (targets != self.ignore_index)

    def _safe(self, targets: Tensor) -> Tensor:
        """Return the targets with a harmless one in every position that has none."""
        return targets.masked_fill(~self._counted(targets), 0)

    def _weights(self, outputs: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Return the weight of each position in its example's loss, in the shape of the positions."""
        counted = self._counted(targets)
        given = None if weights is None else spread(weights, counted.shape)
        if given is not None:
            counted = counted & (given != 0)
        shares = counted.to(outputs.dtype)
        if self.reduction == "mean":
            total = rows_of(shares).sum(1).clamp_min(1.0)
            shares = shares / spread(total, shares.shape)
        return shares if given is None else shares * given.to(outputs.dtype)
