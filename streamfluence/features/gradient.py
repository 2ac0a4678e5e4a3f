"""Projected per-example gradients, of the loss or of a probe of the output Hessian."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from streamfluence.capture import Capture, Scales, Tape
from streamfluence.capture.base import Uses
from streamfluence.errors import InputError
from streamfluence.features._own import OwnValues
from streamfluence.features.base import Feature, Measured
from streamfluence.layout import TRAINING_LOSS
from streamfluence.projections.base import Projection
from streamfluence.task import Task


class Gradient(Feature):
    """The gradient of one measurement of each example, projected on the device.

    Args:
        task: Gives the loss and the probes.
        capture: Planned on the task's model at one checkpoint.
        projection: Ready to apply; None while it is still being fitted.
        scales: Of the coordinates in which gradients are given.
    """

    def __init__(
        self,
        task: Task,
        capture: Capture,
        projection: Projection | None,
        scales: Scales | None = None,
    ) -> None:
        self.task, self.capture, self.projection = task, capture, projection
        self.scales = scales or Scales()
        self._own = OwnValues()

    @property
    def width(self) -> int:
        assert self.projection is not None
        return sum(part.width for part in self.projection.parts)

    def measure(self, batch: Any, measurement: str = "loss", prove: Sequence[int] = ()) -> Measured:
        assert self.projection is not None
        with self.capture.record(batch, prove) as tape:
            value = self._value(measurement, tape)
            uses = self._uses(tape, value, torch.ones_like(value), last=True)
            rows = self.projection.apply(uses)
        return Measured(rows.to(torch.float32), value[: tape.count].detach().to(torch.float32))

    def loss_uses(self, batch: Any) -> Iterator[tuple[Uses, float]]:
        """Yield the loss gradients of one batch, as uses, with weight 1."""
        with self.capture.record(batch) as tape:
            value = self._value(TRAINING_LOSS, tape)
            yield self._uses(tape, value, torch.ones_like(value), last=True), 1.0

    def probe_uses(
        self, batch: Any, ids: Tensor, seed: int, probes: Callable[[int], int | None]
    ) -> Iterator[tuple[Uses, float]]:
        """Yield probe gradients of one batch with weights that sum to one Gauss-Newton matrix.

        Args:
            ids: Global row of each example, int64; its probes depend on nothing else.
            probes: From the number of output columns to the number of probes, None for all columns.
        """
        likelihood = self.task.likelihood
        if likelihood is None:
            raise InputError(
                f"{self.task.name} gives only loss(), which has no output Hessian to probe; "
                f"use curvature.name = 'fisher', or define likelihood and forward()"
            )
        with self.capture.record(batch) as tape:
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
                yield self._uses(tape, outputs, cotangent, last=number == count - 1), weight

    def _value(self, measurement: str, tape: Tape) -> Tensor:
        """Return what is measured of each example; CoverageError if that is not its own."""

        def of(returned: Any) -> Tensor:
            return self.task.measure(measurement, returned)

        if not self.task.measures_itself(measurement):
            return of(tape.returned)
        return self._own.measure(of, tape)

    def _uses(self, tape: Tape, outputs: Tensor, cotangent: Tensor, last: bool) -> Uses:
        return self.scales.apply(tape.gradients(outputs, cotangent, last))
