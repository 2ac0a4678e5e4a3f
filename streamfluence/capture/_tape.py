"""One recorded forward pass, from which the uses of every block are read, probe by probe."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from streamfluence.capture._blocks import Filled
from streamfluence.capture._layouts import Layouts, find_unplanned
from streamfluence.capture._recorder import Recorder, eager
from streamfluence.capture._uses import find_uses
from streamfluence.capture.base import Use
from streamfluence.errors import CoverageError


class Tape:
    """What forward returned, and per-example gradients of anything computed from it.

    Attributes:
        returned: What forward returned; its graph is alive.
    """

    def __init__(
        self, returned: Any, recorder: Recorder, layouts: Layouts, blocks: Sequence[Filled]
    ) -> None:
        self.returned = returned
        self._recorder, self._layouts, self._blocks = recorder, layouts, blocks
        self._spent = False
        if unplanned := find_unplanned(recorder.calls, layouts, recorder.examples):
            raise unplanned.refusal()

    def gradients(
        self, outputs: Tensor, cotangent: Tensor, last: bool = False
    ) -> dict[str, list[Use]]:
        """Return the uses of every block for the gradient of ``sum(outputs * cotangent)``.

        Args:
            outputs: Any tensor of the graph: logits, or a loss of shape ``(example,)``.
            cotangent: The shape of ``outputs``.
            last: Free the graph; no further call is possible.

        Returns:
            Block name to its uses, in the order of the blocks.

        Raises:
            CoverageError: If ``outputs`` has no gradient, or a tensor was changed in place.
        """
        if self._spent:
            raise CoverageError("the tape's graph was freed by last=True; record the batch again")
        if not outputs.requires_grad:
            raise CoverageError(
                "the outputs do not depend on any captured parameter; check that forward and the "
                "loss neither detach them nor run under torch.no_grad()"
            )
        for call in self._recorder.calls:
            call.refuse_changed()
        with eager():  # checkpointing runs modules again here
            arrived = self._backward(outputs, cotangent, last)
        with torch.no_grad():
            return find_uses(self._recorder, self._layouts, self._blocks, arrived)

    def close(self) -> None:
        """Forget the graph and the recorded inputs."""
        self._spent = True
        self._recorder.calls.clear()
        self._recorder.copies.clear()

    def _backward(self, outputs: Tensor, cotangent: Tensor, last: bool) -> list[Tensor | None]:
        """Return the gradient at every call's outputs, then at every copied parameter."""
        recorder = self._recorder
        edges = [edge for call in recorder.calls for edge in call.edges]
        wanted = [*edges, *recorder.copies]
        # torch takes edges as outputs; its annotation does not say that they may be mixed.
        present = cast(list[Tensor], [place for place in wanted if place is not None])
        found = iter(
            torch.autograd.grad(
                [outputs],
                present,
                [cotangent.to(outputs.dtype)],
                retain_graph=not last,
                allow_unused=True,
            )
        )
        self._spent = last
        return [None if place is None else next(found) for place in wanted]
