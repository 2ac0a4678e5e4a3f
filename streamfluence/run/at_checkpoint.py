"""A session at one of its checkpoints: the model there, what is measured of it, what its sketch left."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import nn

from streamfluence.capture import Capture, Scales, by_block
from streamfluence.errors import InputError
from streamfluence.features.base import Feature, Ground
from streamfluence.features.gradient import Gradient
from streamfluence.layout import sketch_stage
from streamfluence.linalg import State
from streamfluence.options import make
from streamfluence.projections.base import Projection
from streamfluence.run.checkpoints import checkpoint_signature, refuse_other_checkpoint
from streamfluence.run.feature import feature_of
from streamfluence.run.session import Session, worker_unit
from streamfluence.run.states import load_state, save_state

PLANNING = 16  # examples a feature learns shapes from: enough for routed experts to show

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True)
class AtCheckpoint:
    """A session at one checkpoint; light, for what is loaded stays with the session.

    Attributes:
        number: Of the checkpoint.
    """

    session: Session
    number: int

    @property
    def model(self) -> nn.Module:
        """The model on the device; only one is kept at a time.

        Raises:
            InputError: If the checkpoint changed since the run was made.
        """
        return self.session.kept("model", self.number, self._load_model)

    @property
    def feature(self) -> Feature:
        """What is measured, ready to measure here."""
        return self.session.kept("feature", self.number, self._ready_feature)

    @property
    def capture(self) -> Capture:
        """What captures the gradients of the model.

        Raises:
            InputError: If what is measured is no gradient.
        """
        feature, run = self.feature, self.session.run
        if not isinstance(feature, Gradient):
            raise InputError(
                f"{run.url} measures the feature {run.method.feature.name!r}, which is no "
                "gradient of weights; this looks at gradients, so ask it of a run whose feature is 'gradient'"
            )
        return feature.capture

    def projection(self) -> Projection:
        """Return the run's projection, not fitted yet."""
        method = self.session.run.method
        wanted, blocks, seed = method.projection, self.feature.blocks, method.sketch.seed
        made: Projection = make(
            "projections", wanted.name, wanted.options, blocks, wanted.width, seed
        )
        return made

    def scales(self) -> Scales:
        """Return the coordinates in which the damping is the same for every weight, on the device."""
        if not self.session.run.method.curvature.by_weight:
            return Scales()
        arrays, _ = self.load("scales")
        sides = by_block(self.feature.blocks, arrays["left"], arrays["right"])
        return Scales(sides).to(self.session.device)

    def stage(self, step: str) -> str:
        """Return the stage of one step of the sketch."""
        return sketch_stage(self.number, step)

    def load(self, step: str, part: int = 0) -> tuple[State, dict[str, Any]]:
        """Return what a part of one step of the sketch committed; see ``load_state``."""
        return load_state(self.session.run, self.stage(step), part)

    def save(
        self,
        step: str,
        state: State,
        facts: dict[str, Any],
        part: int = 0,
        rests_on: dict[str, str] | None = None,
    ) -> None:
        """Commit a part of one step of the sketch; see ``save_state``."""
        save_state(self.session.run, self.stage(step), part, state, facts, rests_on)

    def _ready_feature(self) -> Feature:
        feature = feature_of(self.session.run.method)
        feature.at(self.ground(self.model))
        return feature

    def ground(self, model: nn.Module) -> Ground:
        """Return what the run's feature is measured on, of a model of the task."""
        session = self.session
        rows = session.reader("train").read(0, min(PLANNING, session.run.train.count))
        chosen = session.run.method.model
        return Ground(
            task=session.task,
            model=model,
            forward=session.forward,
            forward_exactly=partial(session.forward_at, False),
            examples=session.batch(rows),
            exclude=chosen.exclude,
            one_by_one=chosen.one_by_one,
            half=session.half,
        )

    def _load_model(self) -> nn.Module:
        run = self.session.run
        path = run.checkpoint_path(self.number)
        before = checkpoint_signature(path)
        refuse_other_checkpoint(run, self.number, path)
        trainable = feature_of(run.method).gradients
        model = self.session.task.model(path, trainable).to(self.session.device)
        if checkpoint_signature(path) != before:
            raise InputError(
                f"checkpoint {path} was written to while it was loaded; wait until nothing writes to it, "
                f"then run the same command again"
            )
        seed = run.method.model.shuffle
        return model if seed is None else shuffled(model, seed)


def at_checkpoints(session: Session) -> list[AtCheckpoint]:
    """Return the session at every checkpoint, in order."""
    return [AtCheckpoint(session, number) for number in session.run.checkpoints]


def checkpoint_unit(
    unit: Callable[Concatenate[AtCheckpoint, Arguments], Result],
) -> Callable[Concatenate[str, str, int, Arguments], Result]:
    """Make of a unit of work at a checkpoint the function that a worker calls; see ``worker_unit``.

    What is made takes the run's path, the device and the checkpoint's number where the unit takes
    the session at it.
    """

    @worker_unit
    @wraps(unit)
    def of_session(
        session: Session, number: int, /, *given: Arguments.args, **named: Arguments.kwargs
    ) -> Result:
        return unit(AtCheckpoint(session, number), *given, **named)

    return of_session


def shuffled(model: nn.Module, seed: int) -> nn.Module:
    """Return the model with the entries of every parameter in random order: nothing it learned."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
            weight.copy_(weight.flatten()[order].view_as(weight))
    return model
