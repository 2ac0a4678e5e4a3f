"""Whether a model does on its training data what a trained model does, from a few hundred examples.

Two things show that a model does not see what it was trained on: losses no better than those of a
guess, and BatchNorm statistics that are far from those of the data. Forward passes only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from streamfluence.batches import in_company
from streamfluence.likelihoods.base import Likelihood
from streamfluence.likelihoods.gaussian import Gaussian
from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.run.sample import sample_of

EXAMPLES = 256
MEAN_OFF = 1.0  # of a channel, in its running standard deviations
VARIANCE_OFF = 4.0  # of a channel, either way
_OUTPUTS = 1024  # of an example, whose targets are kept


def plausibility(at: AtCheckpoint) -> dict[str, Any]:
    """Return facts on a sample of the training set, JSON-able.

    Returns:
        ``losses``: ``examples``, the ``share`` of them whose loss is above that of a guess, the
        ``mean`` loss and that of the ``guess``; None without a likelihood. ``batch_norm``: the ``layer``
        with the largest ``share`` of channels that are far from its statistics; None without one.
    """
    session = at.session
    rows, size = sample_of(session, EXAMPLES), session.run.method.batches.batch_size
    model, reader = at.model, session.reader("train")
    losses = _Losses(session.task.likelihood)
    with _watched(model) as watched:
        for part in np.split(rows, range(size, len(rows), size)):
            batch = session.batch(reader.take(part))
            returned = in_company(partial(session.forward, model), batch, len(part))
            losses.add(returned, len(part))
            del returned
    return {"losses": losses.facts(), "batch_norm": _worst(watched)}


@dataclass
class _Losses:
    """Losses of examples, and what a guess that does not look at the inputs would have.

    Equal odds for every class; for gaussian, the mean of the targets of each output.
    """

    likelihood: Likelihood | None
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)

    def add(self, returned: Any, count: int | None = None) -> None:
        """Take note of the first ``count`` examples of what forward returned, or of all."""
        if self.likelihood is None:
            return
        outputs, targets = (tensor.detach()[:count] for tensor in returned[:2])
        weights = None if len(returned) < 3 or returned[2] is None else returned[2][:count]
        if isinstance(self.likelihood, Gaussian):
            # Of each output its target and error; few numbers, or the first of many.
            kept = self.likelihood.with_nan(targets).to(outputs.dtype)
            pair = torch.stack([kept, outputs]).reshape(2, len(outputs), -1)[:, :, :_OUTPUTS]
            self.targets.append(pair.double().cpu())
        else:
            loss = self.likelihood.loss(outputs, targets, weights)
            guess = self.likelihood.chance(outputs, targets, weights)
            self.pairs.append((loss.double().cpu(), guess.double().cpu()))

    def facts(self) -> dict[str, Any] | None:
        if self.pairs:
            loss, guess = (torch.cat(column) for column in zip(*self.pairs, strict=True))
        elif self.targets:
            loss, guess = _squared(self.targets)
        else:
            return None
        asked = torch.isfinite(loss) & (guess > 0)
        if not bool(asked.any()):
            return None
        loss, guess = loss[asked], guess[asked]
        return {
            "examples": len(loss),
            "share": float((loss > guess).double().mean()),
            "mean": float(loss.mean()),
            "guess": float(guess.mean()),
        }


def _squared(pairs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean squared error of each example, and that of the mean of all targets."""
    width = min(pair.shape[2] for pair in pairs)  # positions may differ from batch to batch
    targets, outputs = torch.cat([pair[:, :, :width] for pair in pairs], dim=1)
    counted = ~targets.isnan()
    mean = targets.nanmean(0, keepdim=True)
    number = counted.sum(1).clamp_min(1)

    def error(guess: Tensor) -> Tensor:
        mean: Tensor = ((guess - targets) ** 2).masked_fill(~counted, 0).sum(1) / number
        return mean

    return error(outputs), error(mean)


@dataclass
class _Channels:
    """Sums over what one BatchNorm layer was given."""

    name: str
    layer: _BatchNorm
    count: int = 0
    total: Any = 0.0
    squares: Any = 0.0

    def see(self, _: nn.Module, given: tuple[Any, ...]) -> None:
        x = given[0].detach()
        axes = [axis for axis in range(x.dim()) if axis != 1]
        self.count += x.numel() // x.shape[1]
        self.total = self.total + x.sum(axes, dtype=torch.float64)
        self.squares = self.squares + x.float().square().sum(axes, dtype=torch.float64)

    def share(self) -> float:
        """Return the share of channels whose mean or variance is far from the running one."""
        assert self.layer.running_mean is not None and self.layer.running_var is not None
        mean = self.total / self.count
        variance = (self.squares / self.count - mean**2).clamp_min(0)
        running = self.layer.running_var.double() + self.layer.eps
        apart = (mean - self.layer.running_mean.double()).abs() / running.sqrt()
        ratio = (variance + self.layer.eps) / running
        far = (apart > MEAN_OFF) | (ratio > VARIANCE_OFF) | (ratio < 1 / VARIANCE_OFF)
        return float(far.double().mean())


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[_Channels]]:
    """Sum what every BatchNorm layer with running statistics is given."""
    found = [
        _Channels(name or type(module).__name__, module)
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    handles = [one.layer.register_forward_pre_hook(one.see) for one in found]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _worst(watched: list[_Channels]) -> dict[str, Any] | None:
    seen = [one for one in watched if one.count > 1]
    if not seen:
        return None
    share, name = max((one.share(), one.name) for one in seen)
    return {"layer": name, "share": share}
