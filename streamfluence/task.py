"""The user's side of a job: a model, how to run it on a batch, and what its outputs mean.

A task is a Python file, or ``package.module:name`` for an object with the same
attributes. It is the only code that is loaded, only from where the user names
it, and its hash is part of the run's manifest.
"""

import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamfluence.batches import fresh, in_company
from streamfluence.errors import InputError, StreamfluenceError
from streamfluence.layout import TRAINING_LOSS
from streamfluence.likelihoods.base import Likelihood


@dataclass(frozen=True)
class Task:
    """A loaded task.

    Attributes:
        name: What the job calls it.
        files: sha256 of every source file, by its path relative to the job's folder; grows while its
            functions run and import more.
        likelihood: None when the task gives only ``loss``; there is then no output Hessian.
    """

    name: str
    files: Mapping[str, str]
    likelihood: Likelihood | None
    _model: Callable[..., Any]
    _forward: Callable[..., Any] | None
    _loss: Callable[..., Any] | None
    _measurements: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    _training_loss: Callable[..., Any] | None = None
    train: Callable[..., Any] | None = None

    @property
    def digest(self) -> str:
        """The sha256 of the digests of all its source files."""
        return digest_of(self.files)

    @property
    def has_training_loss(self) -> bool:
        """Whether training examples are measured by another loss than queries are by default."""
        return self._training_loss is not None

    def model(self, checkpoint: Path, trainable: bool = True) -> nn.Module:
        """Return the model of one checkpoint, checked: a module whose parameters are all finite.

        Args:
            trainable: Whether it needs a weight that can have a gradient.
        """
        if not checkpoint.exists():
            raise InputError(
                f"checkpoint {checkpoint} does not exist; check `checkpoints` in the job"
            )
        model = self._call("model", self._model, str(checkpoint))
        if not isinstance(model, nn.Module):
            raise InputError(
                f"{self.name}: model() must return a torch nn.Module, got {type(model).__name__}"
            )
        if trainable:
            _refuse_untrainable(self.name, model)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise InputError(
                    f"checkpoint {checkpoint}: {name} holds NaN or infinite values; every score would "
                    f"be NaN, so use a checkpoint from before training diverged"
                )
        return model

    def forward(self, model: nn.Module, batch: Any) -> Any:
        """Run the model; without a likelihood return the losses.

        With one return ``(outputs, targets)``, then weights where the task gives them (or None),
        then whatever only its ``training_loss`` needs. The task gets a copy of the batch, which it
        may change: it is run again on the same batch.
        """
        given = fresh(batch)
        if self._forward is None:
            assert self._loss is not None
            return self._call("loss", self._loss, model, given)
        returned = self._call("forward", self._forward, model, given)
        several = isinstance(returned, tuple) and len(returned) >= 2
        if not (several and _tensors(returned[:2]) and _tensors_or_none(returned[2:3])):
            raise InputError(
                f"{self.name}: forward() must return (outputs, targets), two tensors, or (outputs, "
                f"targets, weights), three"
            )
        if len(returned) > 3 and self._training_loss is None:
            raise InputError(
                f"{self.name}: forward() returned {len(returned)} things; after (outputs, targets, "
                f"weights) it may return more only for training_loss, which the task does not define"
            )
        return returned

    def check(self, returned: Any, examples: int) -> None:
        """Raise InputError when what ``forward`` returned fits neither the batch nor the likelihood."""
        leading = returned if isinstance(returned, Tensor) else returned[0]
        if leading.dim() == 0 or len(leading) != examples:
            raise InputError(
                f"{self.name}: a batch of {examples} examples gave {tuple(leading.shape)}; the first "
                f"axis must count examples (return one loss an example, not their mean)"
            )
        if self.likelihood is not None:
            self.likelihood.check(*returned[:3])
        elif leading.dim() != 1:
            raise InputError(
                f"{self.name}: loss() must return shape (example,), not {tuple(leading.shape)}"
            )

    def loss(self, returned: Any) -> Tensor:
        """Return the loss of each example from what ``forward`` returned, shape ``(example,)``."""
        return returned if self.likelihood is None else self.likelihood.loss(*returned[:3])

    def training_loss(self, returned: Any) -> Tensor:
        """Return what training made small, of each example: the task's own, or else the loss."""
        if self._training_loss is None:
            return self.loss(returned)
        # One that knows nothing of weights may still be given them, for queries to use.
        given = returned if binds(self._training_loss, len(returned)) else returned[:2]
        return self._one_each("training_loss", self._training_loss, given)

    def check_measurement(self, name: str) -> None:
        """Raise InputError when there is no measurement of that name."""
        known = ["loss", "margin", *self._measurements]
        known += [] if self._training_loss is None else [TRAINING_LOSS]
        if name not in known:
            raise InputError(
                f"{self.name} has no measurement {name!r}; there are: {', '.join(known)}"
            )
        if name != "loss" and self.likelihood is None:
            raise InputError(
                f"measurement {name!r} needs a likelihood, but {self.name} gives only loss()"
            )

    def measure(self, name: str, returned: Any) -> Tensor:
        """Return a query's measurement, oriented so that *lower is better*, shape ``(example,)``.

        ``loss`` is the loss; ``margin`` its log-odds with the sign turned; ``training_loss`` what
        training examples are measured by; any other name is the task's own function of
        ``(outputs, targets)``.
        """
        if name == TRAINING_LOSS:
            return self.training_loss(returned)
        self.check_measurement(name)
        if name == "loss":
            return self.loss(returned)
        if name == "margin":
            assert self.likelihood is not None
            return -self.likelihood.margin(*returned[:3])
        measurement = self._measurements[name]
        return self._one_each(f"measurement {name!r}", measurement, returned[:2])

    def measures_itself(self, name: str) -> bool:
        """Return whether a measurement is the task's own code on what ``forward`` returned."""
        if name == TRAINING_LOSS and self._training_loss is None:
            name = "loss"
        kind = type(self.likelihood).__module__
        given = self.likelihood is None or kind.startswith("streamfluence.likelihoods.")
        return name not in ("loss", "margin") or not given

    def _one_each(self, what: str, function: Callable[..., Any], given: Any) -> Tensor:
        """Return a function's number for each example, checked to be that."""

        def checked(some: Any) -> Tensor:
            measured, shape = self._call(what, function, *some), some[0].shape[:1]
            if not isinstance(measured, Tensor) or measured.shape != shape:
                kind = type(measured).__name__
                found = tuple(measured.shape) if isinstance(measured, Tensor) else kind
                raise InputError(
                    f"{self.name}: {what} must return shape (example,), {tuple(shape)} here, got {found}"
                )
            return measured

        count = len(given[0])
        return in_company(checked, given, count)[:count]

    def require_train(self) -> None:
        """Raise InputError unless the task can be trained again: ``train(indices, seed)``."""
        if not callable(self.train):
            raise InputError(
                f"task {self.name} defines no train(indices, seed); without it nothing can be trained "
                f"again, so add one that returns the weights trained on those rows of the training set"
            )
        try:
            inspect.signature(self.train).bind([0], 0)
        except TypeError as error:
            raise InputError(f"{self.name}: train must take (indices, seed): {error}") from error
        except ValueError:  # a callable without a signature
            return

    def retrain(self, indices: np.ndarray, seed: int) -> dict[str, Tensor]:
        """Return the weights that the task's ``train`` makes of some rows of the training set.

        Args:
            indices: Sorted rows, int64.

        Raises:
            InputError: If it fails, or returns neither a state_dict nor a module.
        """
        assert self.train is not None
        # Results are on stdout, and nobody knows what a training script prints.
        with redirect_stdout(sys.stderr):
            trained = self._call("train", self.train, indices, seed)
        state = trained.state_dict() if isinstance(trained, nn.Module) else trained
        if not (isinstance(state, Mapping) and state and _tensors(tuple(state.values()))):
            raise InputError(
                f"{self.name}: train() must return a state_dict or a module, got "
                f"{type(trained).__name__}"
            )
        return dict(state)

    def load(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put weights into a model of this task; InputError if they do not fit it."""
        self._call("load_state_dict", model.load_state_dict, state)

    def _call(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the user's code; what it raises becomes one clear sentence."""
        try:
            return function(*arguments)
        except StreamfluenceError:
            raise
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            text = " ".join(str(error).split())[:400]
            raise InputError(
                f"{self.name}: {what}() failed: {type(error).__name__}: {text}"
            ) from error


def _tensors(values: tuple[Any, ...]) -> bool:
    return all(isinstance(value, Tensor) for value in values)


def _tensors_or_none(values: tuple[Any, ...]) -> bool:
    return all(value is None or isinstance(value, Tensor) for value in values)


def _refuse_untrainable(name: str, model: nn.Module) -> None:
    """Raise InputError when no weight of a model can have a gradient."""
    weights = list(model.parameters())
    if any(weight.requires_grad for weight in weights):
        return
    tensors = [*weights, *model.buffers()]
    whole = sum(t.numel() for t in tensors if not (t.is_floating_point() or t.is_complex()))
    packed = not weights or 2 * whole > sum(t.numel() for t in tensors)
    kind = "it has none, or only quantised ones" if packed else f"all {len(weights)} are frozen"
    raise InputError(
        f"{name}: the model has no trainable weights ({kind}), so no example has a gradient; set "
        f"requires_grad = True in model() on the weights that training changed (of an adapter, say), "
        f"load them before quantisation, or choose a feature.name that needs no gradients"
    )


def binds(function: Callable[..., Any], arguments: int) -> bool:
    """Return whether a function takes so many arguments; one without a signature may."""
    try:
        inspect.signature(function).bind(*range(arguments))
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def digest_of(files: Mapping[str, str]) -> str:
    """Return the sha256 of the digests of files and their names."""
    return hashlib.sha256(json.dumps(dict(files), sort_keys=True).encode()).hexdigest()
