"""What the features of one forward pass share: a vector an example, and the proof that it is its own.

Of every batch one example more, and all that are to be proved, are run alone; a batch that is proved
is run in another order, too. What depends on its neighbours or on its place is refused.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from streamfluence.batches import example_count, in_company, join, select
from streamfluence.capture import Block, Explicit, Precision, refuse_random, refuse_training
from streamfluence.errors import CoverageError, InputError
from streamfluence.features._value import Values
from streamfluence.features.base import Feature, Forward, Ground, Measured
from streamfluence.layout import TRAINING_LOSS

_SMALL = 1e-2  # of the mean norm in a batch: the least norm that a row's rounding is a share of
_ROWS = 1e-5  # share that rows round by, which are float32 also where the model is not


class OfForward(Feature):
    """Base of the features that a forward pass shows: one block, one dense use, no gradient."""

    smallest = 0.0  # norm that the rounding of a row is a share of, where its own is less

    def vectors(self, forward: Forward, batch: Any, measurement: str) -> tuple[Tensor, Tensor]:
        """Return the vector of each example, ``(example, width)``, and its value, ``(example,)``."""
        raise NotImplementedError

    def at(self, ground: Ground) -> None:
        refuse_training(ground.model)
        self._ground, self._values, self._turn = ground, Values(), 0
        self._width: int | None = None
        rows, _ = self._run(ground.forward, ground.examples, TRAINING_LOSS)
        self._width = rows.shape[1]
        self.blocks = (Block(self.block, (), 1, 1, self._width),)

    def measure(
        self, batch: Any, measurement: str = TRAINING_LOSS, prove: Sequence[int] = ()
    ) -> Measured:
        refuse_training(self._ground.model)
        rows, value = self._run(self._ground.forward, batch, measurement)
        self._turn += 1
        places = {self._turn % len(rows), *prove}
        self._refuse_mixed(self._ground.forward, batch, measurement, rows, sorted(places))
        if prove:
            self._refuse_places(self._ground.forward, batch, measurement, rows)
        return Measured({self.block: [Explicit(rows[:, None, None, :])]}, value)

    def check(self, batch: Any) -> dict[str, Any]:
        ground = self._ground
        forward, count = ground.forward_exactly, example_count(batch)
        refuse_random(forward, ground.model, batch)
        rows, _ = self._run(forward, batch, TRAINING_LOSS)
        again, _ = self._run(forward, batch, TRAINING_LOSS)
        if not self._close(again, rows, rows):
            raise CoverageError(
                f"{self.what} differs when the same batch is run twice: it is random, or forward changes "
                "a buffer that it reads; make forward do the same for the same batch"
            )
        self._refuse_mixed(forward, batch, TRAINING_LOSS, rows, range(count))
        self._refuse_places(forward, batch, TRAINING_LOSS, rows)
        cosine = None
        if ground.half:
            half, _ = self._run(ground.forward, batch, TRAINING_LOSS)
            flat = (half.flatten().double(), rows.flatten().double())
            cosine = float(torch.nn.functional.cosine_similarity(*flat, dim=0))
        return {"precision_cosine": cosine, "announcements": [], "width": rows.shape[1]}

    def refuse_padded(self, batch: Any, place: int, one: Any, measurement: str) -> None:
        forward = self._ground.forward
        rows, _ = self._run(forward, select(batch, [place, place]), measurement)
        found, _ = self._run(forward, join([one, one]), measurement)
        if not self._close(found, rows, rows):
            raise CoverageError(
                f"{self.what} is another when an example is read by itself than when it is read among "
                f"others ({_apart(found[0], rows[0])}), as where a batch is padded to its longest "
                f"example; {self.unpadded}"
            )

    @property
    def block(self) -> str:
        """Name of the one block."""
        raise NotImplementedError

    @property
    def what(self) -> str:
        """What is measured, as a sentence about it begins."""
        raise NotImplementedError

    @property
    def unpadded(self) -> str:
        """What to do where a padded example is another."""
        return "pad every batch to the same length, or leave what is padded out of the loss"

    def _run(self, forward: Forward, batch: Any, measurement: str) -> tuple[Tensor, Tensor]:
        """Return vectors and values, float32, of the width that the first examples have."""
        if self._ground.one_by_one:
            found = [
                self.vectors(forward, select(batch, [place]), measurement)
                for place in range(example_count(batch))
            ]
            self._refuse_widths({rows.shape[1] for rows, _ in found})
            rows, value = (torch.cat(pieces) for pieces in zip(*found, strict=True))
        else:
            count = example_count(batch)
            rows, value = in_company(
                lambda given: self.vectors(forward, given, measurement), batch, count
            )
            rows, value = rows[:count], value[:count]
        self._refuse_widths({rows.shape[1]})
        return rows.detach().float(), value.detach().float()

    def _refuse_widths(self, widths: set[int]) -> None:
        wanted = widths if self._width is None else {self._width}
        if widths != wanted or len(widths) > 1:
            raise InputError(
                f"{self.what} is {max(widths):,} numbers wide for some examples and {min(wanted):,} for "
                "others; all rows must have one width, as with pool = 'mean'"
            )

    def _refuse_mixed(
        self, forward: Forward, batch: Any, measurement: str, rows: Tensor, places: Sequence[int]
    ) -> None:
        """Refuse rows that change with the other examples of the batch."""
        if self._ground.one_by_one:
            return
        for place in places:
            # Two of it, as a batch of one may be squeezed.
            found, _ = self._run(forward, select(batch, [place, place]), measurement)
            if not self._close(found[:1], rows[place : place + 1], rows):
                raise CoverageError(
                    f"{self.what} changes with the other examples of the batch "
                    f"({_apart(found[0], rows[place])}): the model mixes its examples, or returns them in "
                    "an order of its own; make forward treat each example by itself, or set "
                    "model.one_by_one = true"
                )

    def _refuse_places(self, forward: Forward, batch: Any, measurement: str, rows: Tensor) -> None:
        """Refuse rows that are others, or in other places, when the batch comes in another order."""
        order = list(reversed(range(len(rows))))
        found, _ = self._run(forward, select(batch, order), measurement)
        if not self._close(found, rows[order], rows):
            raise CoverageError(
                f"{self.what} depends on the order of the examples in a batch: the model sorts them or "
                "counts their places; make forward treat each example by itself, or set "
                "model.one_by_one = true"
            )

    def _close(self, found: Tensor, expected: Tensor, batch: Tensor) -> bool:
        """Return whether rows differ by rounding alone; rows that are not finite must be so in both."""
        norms = batch.norm(dim=1)
        norms = norms[norms.isfinite()]
        least = _SMALL * float(norms.mean()) if len(norms) else 0.0
        share = max(_ROWS, _precision(self._ground).allowed(1.0, 0.0))
        scale = expected.norm(dim=1).nan_to_num(0.0, 0.0).clamp_min(max(least, self.smallest))
        allowed = share * scale
        apart = (found - expected).norm(dim=1)
        lost = ~found.isfinite().all(1) & ~expected.isfinite().all(1)
        return bool(((apart <= allowed) | lost).all())


def _precision(ground: Ground) -> Precision:
    """Return the least precise numbers that a forward pass goes through."""
    tensors = [*ground.model.parameters(), *ground.model.buffers()]
    half = [torch.bfloat16] if ground.half else []
    return Precision.of([*half, *(t.dtype for t in tensors)], any(t.is_cuda for t in tensors))


def _apart(found: Tensor, expected: Tensor) -> str:
    return (
        f"a row of norm {float(expected.norm()):.4g} is {float((found - expected).norm()):.4g} away"
    )
