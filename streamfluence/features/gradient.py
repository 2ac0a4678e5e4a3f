"""Projected per-example gradients, of the loss or of a probe of the output Hessian."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from streamfluence.batches import select
from streamfluence.capture import Capture, Scales, Tape
from streamfluence.capture.base import Uses
from streamfluence.errors import CoverageError, InputError
from streamfluence.features.base import Feature, Measured
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
        self._turn = 0

    @property
    def width(self) -> int:
        assert self.projection is not None
        return sum(part.width for part in self.projection.parts)

    def measure(self, batch: Any, measurement: str = "loss", prove: Sequence[int] = ()) -> Measured:
        assert self.projection is not None
        of = partial(self.task.measure, measurement)
        with self.capture.record(batch, prove, measure=of) as tape:
            value = self._value(of, tape.returned)
            uses = self._uses(tape, value, torch.ones_like(value), last=True)
            rows = self.projection.apply(uses)
        return Measured(rows.to(torch.float32), value.detach().to(torch.float32))

    def loss_uses(self, batch: Any) -> Iterator[tuple[Uses, float]]:
        """Yield the loss gradients of one batch, as uses, with weight 1."""
        with self.capture.record(batch, measure=self.task.training_loss) as tape:
            value = self._value(self.task.training_loss, tape.returned)
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
        with self.capture.record(batch, measure=self.task.loss) as tape:
            outputs, targets, *more = tape.returned
            weights = more[0] if more else None
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

    def _value(self, of: Callable[[Any], Tensor], returned: Any) -> Tensor:
        """Return what is measured of each example, after seeing that one of them is what it is alone.

        Raises:
            CoverageError: If it changes with the others, as a loss that is weighted by its batch does.
        """
        value, self._turn = of(returned), self._turn + 1
        if isinstance(returned, Tensor):
            return value  # losses themselves, which the capture looks at
        place = self._turn % len(value)
        try:
            one = select(returned, [place, place])
        except InputError:  # something beside the outputs that has no example axis
            return value
        with torch.no_grad():
            alone = of(one)[0]
        expected = value[place].detach()
        if not torch.allclose(alone.to(expected), expected, rtol=1e-3, atol=1e-5, equal_nan=True):
            if not torch.allclose(of(returned)[place], value[place], equal_nan=True):
                raise CoverageError(
                    "what is measured of an example changes when it is measured twice on the same "
                    "outputs: the loss is random (dropout, or noise drawn in it); make it return the "
                    "same for the same outputs"
                )
            raise CoverageError(
                f"what is measured of an example changes with the others of its batch: "
                f"{float(expected):.6g} among them, {float(alone):.6g} alone. A loss that weights or "
                "normalises by the batch gives no example a gradient of its own; return one loss an "
                "example that depends on its own outputs and targets only"
            )
        return value

    def _uses(self, tape: Tape, outputs: Tensor, cotangent: Tensor, last: bool) -> Uses:
        return self.scales.apply(tape.gradients(outputs, cotangent, last))
