"""A checkpoint's whole gradients, of which no row is made: products with directions, and with a curvature.

What is computed of several examples at once is compared with plain autograd of one example alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamfluence.capture import Capture, Scales
from streamfluence.data._batches import batch_length, select_batch
from streamfluence.data._prefetch import prefetch
from streamfluence.errors import InputError
from streamfluence.linearised import Linearised
from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.run.sample import finite_examples, sample_rows

# Of |gradient| |direction|; rounding of a batch of 64 moves a slope of the digits net by 1e-7 of that.
_SAME = {torch.float64: 1e-9, torch.float32: 1e-4}
_SAME_ON_GPU = 2e-3  # where convolutions may run in TF32
CURVATURES = ("gauss_newton", "fisher", "identity")


class Unprojected:
    """Derivatives of one checkpoint's model in every weight that takes part, as one flat vector.

    Forward runs in float32 or float64, as the weights are, whatever the precision of the run's rows.

    Attributes:
        parts: The place of each block of the run's capture in a vector, by name.
        width: Length of a vector.

    Raises:
        InputError: If what the run measures is no gradient.
    """

    def __init__(self, at: AtCheckpoint) -> None:
        self._at, self._session, self.capture = at, at.session, at.capture
        model = _in_full(at.model)
        own = {name: weight.numel() for name, weight in model.named_parameters()}
        names: list[str] = []
        self.parts: dict[str, slice] = {}
        for block in self.capture.blocks:
            start = sum(own[name] for name in names)
            names += [name for name in block.parameters if name in own and name not in names]
            self.parts[block.name] = slice(start, sum(own[name] for name in names))
        self._linear = Linearised(model, at.session.task.forward, at.session.task.loss, names)
        self.width = sum(self._linear.sizes.values())
        self.dtype = next(model.parameters()).dtype

    def gradients(self, example_set: str) -> tuple[Tensor, Tensor]:
        """Return gradient ``(example, weight)`` and measurement ``(example,)``, one example at a time."""
        session, facts = self._session, self._session.run.example_set(example_set)
        of = partial(session.task.measure, facts.measurement)
        reader, rows, values = session.reader(example_set), [], []
        for host in prefetch(reader.read(row, row + 1) for row in range(facts.count)):
            batch = session.batch(host)
            rows.append(self._linear.gradients(batch, of)[0])
            values.append(self._linear.measured(batch, of)[0])
        return torch.stack(rows), torch.stack(values)

    def loss_gradients(self, batch: Any) -> Tensor:
        """Return the gradient of the training loss of each example, ``(example, weight)``."""
        return self._linear.gradients(batch, self._session.task.training_loss)

    def slopes(self, batch: Any, directions: Tensor) -> Tensor:
        """Return gradients of the training loss times directions, ``(direction, example)``."""
        return self._linear.slopes(batch, directions, self._session.task.training_loss)

    def slopes_alone(self, batch: Any, directions: Tensor) -> Tensor:
        """Return the same by plain autograd of one example at a time."""
        ones = (select_batch(batch, [place]) for place in range(batch_length(batch)))
        return torch.stack([directions @ self.loss_gradients(one)[0] for one in ones], 1)

    def losses(self, batch: Any) -> Tensor:
        """Return the training loss of each example."""
        return self._linear.measured(batch, self._session.task.training_loss)

    def differs(
        self, batch: Any, directions: Tensor, slopes: Tensor, places: Sequence[int]
    ) -> bool:
        """Return whether slopes of examples at some places of a batch are not what they are alone."""
        same = _SAME_ON_GPU if directions.is_cuda else _SAME[self.dtype]
        for place in places:
            gradient = self.loss_gradients(select_batch(batch, [place]))[0]
            bound = same * gradient.norm() * directions.norm(dim=1)
            off = (directions @ gradient - slopes[:, place]).abs()
            if bool((off > bound + torch.finfo(self.dtype).tiny).any()):
                return True
        return False

    def product(self, curvature: str, vectors: Tensor) -> Tensor:
        """Return each vector times a curvature: its mean over the run's sample of training examples.

        Args:
            curvature: ``gauss_newton`` or ``fisher``.
        """
        total, count = torch.zeros_like(vectors), 0
        for batch in self._sample():
            count += batch_length(batch)
            if curvature == "fisher":
                loss = self._session.task.training_loss
                total += self._linear.outer_products(batch, vectors, loss)
            else:
                total += self._linear.products(batch, vectors)
        return total / count

    def damping(self, values: Mapping[str, float], scales: Scales) -> Tensor:
        """Return the damping of every weight, ``(weight,)``; see ``by_weight``."""
        found = by_weight(self.capture, values, scales)
        flat = torch.cat([found[name].flatten() for name in self._linear.sizes])
        return flat.to(self._session.device, self.dtype)

    def _sample(self) -> Iterator[Any]:
        session, rows = self._session, sample_rows(self._session)
        size, reader = session.run.method.batches.batch_size, session.reader("train")
        cuts = np.split(rows, range(size, len(rows), size))
        for ids, host in zip(cuts, prefetch(reader.take(cut) for cut in cuts), strict=True):
            batch = session.batch(host)
            yield finite_examples(self._at, torch.from_numpy(ids), batch)[1]


def by_weight(capture: Capture, damping: Mapping[str, float], scales: Scales) -> dict[str, Tensor]:
    """Return the damping of every weight, by parameter name, in the parameter's shape.

    Args:
        damping: By block; a block that is not named gets the mean of the others.
        scales: The coordinates in which it is the same for every weight of a block.
    """
    rest = float(np.mean(list(damping.values())))
    entries = {
        block.name: damping.get(block.name, rest) / scales.of_block(block).double().square()
        for block in capture.blocks
    }
    return capture.by_parameter(entries)


def dampings(decision: Mapping[str, Any]) -> dict[str, float]:
    """Return the damping of every block of the curvature, by name.

    Raises:
        InputError: If the run has no curvature.
    """
    if not decision["blocks"]:
        raise InputError(
            "this run has no curvature, so there is no damping to compare at; evaluate a run with "
            "curvature.name = 'gauss_newton'"
        )
    return {block["name"]: block["damping"] for block in decision["blocks"]}


def _in_full(model: nn.Module) -> nn.Module:
    """Return the model with weights of float32 at least."""
    half = any(weight.dtype in (torch.float16, torch.bfloat16) for weight in model.parameters())
    return deepcopy(model).float() if half else model
