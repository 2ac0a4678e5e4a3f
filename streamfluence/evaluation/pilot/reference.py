"""Scores of a pilot by the unprojected Gauss-Newton matrix, solved by a member of ``solvers``.

Slow and exact up to the residual that is reported; nothing of it is stored.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamfluence.capture import Scales
from streamfluence.data._batches import batch_length, map_batch
from streamfluence.errors import InputError
from streamfluence.evaluation.pilot.examples import Pilot
from streamfluence.linearised import Linearised
from streamfluence.options import make
from streamfluence.run.at_checkpoint import AtCheckpoint, at_checkpoints
from streamfluence.run.unprojected import by_weight
from streamfluence.solvers.base import Solved, Solver

_GROUP_ENTRIES = 1 << 26  # of one vector of each query: 512 MiB of float64, and a few times that


@dataclass(frozen=True)
class Solution:
    """Reference scores, and how well their systems were solved.

    Attributes:
        scores: Shape ``(example, query)``, float64, 1/n included, summed over checkpoints.
        residual: Largest relative residual.
        steps: Most products of any system.
        precision: ``float64``, or ``float32`` where the model cannot run in float64.
    """

    scores: np.ndarray
    residual: float
    steps: int
    converged: bool
    precision: str


def reference_scores(
    pilot: Pilot,
    damping: Mapping[str, float],
    by_layer: bool,
    double: bool = False,
    solver: Solver | None = None,
    scales: Sequence[Scales] = (),
) -> Solution:
    """Return the scores that no projection, sketch or codec has touched.

    Args:
        damping: By block of the run's curvature, or of one name for everything; a block that is not
            named gets the mean of the others.
        scales: Of each checkpoint, the coordinates in which it is the same for every weight; by
            default the weights' own.
        by_layer: Leave out what couples the layers; one system a layer.
        double: Solve in float64, where the model can run in it. Convolutions on a CPU are then nine
            times slower (measured on the digits net); the residual says whether float32 was enough.
        solver: By default conjugate gradients.

    Raises:
        InputError: If the model has no forward-mode derivatives.
    """
    session, systems = pilot.session, []
    solver = solver or make("solvers", "conjugate_gradients", {})
    total = np.zeros((len(pilot.rows), len(pilot.queries)))
    precision = "float64"
    for at, weight in zip(at_checkpoints(session), session.run.method.weights, strict=True):
        net = _Net(pilot, at, double)
        precision, capture = net.precision, at.capture
        blocks = {b.name: list(b.parameters) for b in capture.blocks}
        values = by_weight(capture, damping, scales[at.number] if scales else Scales())
        groups = [[name] for name in blocks] if by_layer else [list(blocks)]
        for group in groups:
            part, solved = net.scores({name: blocks[name] for name in group}, values, solver)
            total = total + part * (weight / session.run.train.count)
            systems += solved
    return Solution(
        scores=total,
        residual=max(system.residual for system in systems),
        steps=max(system.steps for system in systems),
        converged=all(system.converged for system in systems),
        precision=precision,
    )


class _Net:
    """One checkpoint's model, in float64 where it can be, and the pilot's batches to match."""

    def __init__(self, pilot: Pilot, at: AtCheckpoint, double: bool) -> None:
        self._task, self._pilot = pilot.session.task, pilot
        self._model, self.dtype = _precise(at, pilot.batches[0], double)
        self._batches, self._queries = (
            [_cast(batch, self.dtype) for batch in batches]
            for batches in (pilot.batches, pilot.query_batches)
        )

    @property
    def precision(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def scores(
        self, blocks: Mapping[str, Sequence[str]], damping: Mapping[str, Tensor], solver: Solver
    ) -> tuple[np.ndarray, list[Solved]]:
        """Return the scores of the parameters of some blocks, without weight and 1/n.

        Args:
            damping: Of every weight, by parameter name.
        """
        first_names = {name for name, _ in self._model.named_parameters()}
        wanted = [n for names in blocks.values() for n in names if n in first_names]
        linear = Linearised(self._model, self._task.forward, self._task.loss, wanted)
        shift = torch.cat([damping[name].flatten() for name in linear.sizes])
        shift = shift.to(self._pilot.session.device, self.dtype)
        right = torch.cat([linear.gradients(b, self._measure) for b in self._queries])
        step = max(1, _GROUP_ENTRIES // len(shift))
        systems = [
            solver.solve(lambda v: self._product(linear, v), part, shift)
            for part in right.split(step)
        ]
        solved = torch.cat([system.solution for system in systems])
        training = self._task.training_loss
        slopes = [linear.slopes(batch, solved, training) for batch in self._batches]
        scores = torch.cat(slopes, dim=1)
        return scores.T.double().cpu().numpy(), systems

    def _measure(self, returned: Any) -> Tensor:
        return self._task.measure(self._pilot.measurement, returned)

    def _product(self, linear: Linearised, vectors: Tensor) -> Tensor:
        total = torch.zeros_like(vectors)
        for batch in self._batches:
            total += linear.products(batch, vectors)
        return total / len(self._pilot.rows)


def _precise(at: AtCheckpoint, batch: Any, double: bool) -> tuple[nn.Module, torch.dtype]:
    """Return a copy of the model in float64 if that is wanted and works on a batch, else in float32."""
    model = deepcopy(at.model)
    if double:
        model = model.double()
        with torch.no_grad(), suppress(InputError):
            outputs, *_ = at.session.task.forward(model, _cast(batch, torch.float64))
            if outputs.dtype == torch.float64:
                return model, torch.float64
    return model.float(), torch.float32


def _cast(batch: Any, dtype: torch.dtype) -> Any:
    assert batch_length(batch)
    return map_batch(
        lambda leaf: (
            leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
        ),
        batch,
    )
