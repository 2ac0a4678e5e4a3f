"""Gradients of each example, of the loss or of a probe of the output Hessian."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from streamfluence.batches import example_count, in_company
from streamfluence.capture import Capture, Tape
from streamfluence.capture.base import Uses
from streamfluence.errors import InputError
from streamfluence.features._own import OwnValues
from streamfluence.features.base import Feature, Forward, Ground, Measured, Probes
from streamfluence.layout import TRAINING_LOSS


class Gradient(Feature):
    """The gradient of the loss (of a query: of its measurement) in every trainable weight.

    A score is an influence: what removing the training example does to the query.
    """

    gradients = True
    predicts = True

    def meaning(self, measurement: str) -> str:
        return (
            "score = predicted increase of the query's measurement if the example were removed from "
            "training; positive: the example helps the query, negative: it hurts; 1/n included"
        )

    def unit(self, measurement: str) -> str:
        return f"{measurement} of one query, per training example"

    def at(self, ground: Ground) -> None:
        self._ground, self._own = ground, OwnValues()
        self.capture = self._planned(ground)
        self.blocks = self.capture.blocks

    @property
    def one_by_one(self) -> int:  # type: ignore[override]
        return self.capture.one_by_one

    def measure(
        self, batch: Any, measurement: str = TRAINING_LOSS, prove: Sequence[int] = ()
    ) -> Measured:
        of = partial(self._ground.task.measure, measurement)
        with self.capture.record(batch, prove, measure=of) as tape:
            value = self._value(of, measurement, tape)
            uses = tape.gradients(value, torch.ones_like(value), last=True)
        return Measured(uses, value[: tape.count].detach().to(torch.float32))

    def curvature_vectors(
        self, source: str, batch: Any, ids: Tensor, seed: int, probes: Probes
    ) -> Iterator[tuple[Uses, float]]:
        if source == "loss":
            yield self.measure(batch).uses, 1.0
            return
        likelihood = self._ground.task.likelihood
        if likelihood is None:
            raise InputError(
                f"{self._ground.task.name} gives only loss(), which has no output Hessian to probe; "
                f"use curvature.name = 'fisher', or define likelihood and forward()"
            )
        with self.capture.record(batch, measure=self._ground.task.loss) as tape:
            outputs, targets, *more = tape.returned
            weights = more[0] if more else None
            ids = ids.repeat(tape.examples // tape.count)  # as there are outputs
            columns = likelihood.n_columns(outputs)
            wanted = probes(columns)
            count = columns if wanted is None else wanted
            for number in range(count):
                if wanted is None:
                    cotangent, weight = likelihood.column(outputs, targets, number, weights), 1.0
                else:
                    cotangent = likelihood.probe(outputs, targets, seed, number, ids, weights)
                    weight = 1.0 / wanted
                last = number == count - 1
                yield tape.gradients(outputs, cotangent, last), weight

    def _value(self, of: Callable[[Any], Tensor], measurement: str, tape: Tape) -> Tensor:
        """Return what is measured of each example; CoverageError if that is not its own."""
        if not self._ground.task.measures_itself(measurement):
            return of(tape.returned)
        return self._own.measure(of, tape)

    def check(self, batch: Any) -> dict[str, Any]:
        """Prove it in float32, since bfloat16 rounds by more than a missed use would show."""
        ground = self._ground
        exact = self._planned(ground, exactly=True) if ground.half else self.capture
        exact.check(batch, ground.task.training_loss)
        return {
            "precision_cosine": self._precision_cosine(batch) if ground.half else None,
            "announcements": list(self.capture.announcements),
            **self._covered(ground.model),
        }

    def _planned(self, ground: Ground, exactly: bool = False) -> Capture:
        forward = ground.forward_exactly if exactly else ground.forward
        return Capture(ground.model, forward, ground.examples, ground.exclude, ground.one_by_one)

    def _covered(self, model: nn.Module) -> dict[str, Any]:
        """Return how many trainable parameters there are and take part, and the names of the others."""
        trainable = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
        covered = {name for block in self.blocks for name in block.parameters}
        return {
            "trainable_parameters": sum(trainable.values()),
            "covered_parameters": sum(size for name, size in trainable.items() if name in covered),
            "left_out": [name for name in trainable if name not in covered],
        }

    def _losses(self, forward: Forward, batch: Any) -> Tensor:
        return self._ground.task.training_loss(forward(self._ground.model, batch))

    def _precision_cosine(self, batch: Any) -> float:
        """Return the cosine between the batch's gradients in bfloat16 and in float32."""
        ground, flat, count = self._ground, [], example_count(batch)
        parameters = [p for p in ground.model.parameters() if p.requires_grad]
        for forward in (ground.forward, ground.forward_exactly):
            loss = in_company(partial(self._losses, forward), batch, count)[:count].sum()
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            flat.append(
                torch.cat([g.to_dense().flatten().double() for g in found if g is not None])
            )
        return float(torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0))
