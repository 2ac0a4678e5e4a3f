"""One recorded forward pass, from which the uses of every block are read, probe by probe."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from streamfluence.capture._blocks import Filled
from streamfluence.capture._claim import Claim
from streamfluence.capture._layouts import Layouts, UnevenCall
from streamfluence.capture._nested import example_count, select
from streamfluence.capture._numbers import Precision
from streamfluence.capture._plain import eager, plain_gradients, run_plainly
from streamfluence.capture._recorder import Recorder
from streamfluence.capture._separation import Separation
from streamfluence.capture._uses import find_uses
from streamfluence.capture.base import Use
from streamfluence.errors import CoverageError


@dataclass
class Passed:
    """One forward pass under one separation.

    Attributes:
        batch: What was run.
        separation, recorder, layouts: How it was recorded.
        returned: What forward returned, each tensor with a place of its own in the graph.
        roots: The tensors with a gradient in it.
        structure: Hash of separation and graph.
        precision: Of the whole forward.
        moves: What moved examples between the calls. Passes that agree in both were computed alike.
        measure: From what forward returns to the losses.
    """

    batch: Any
    separation: Separation
    recorder: Recorder
    layouts: Layouts
    returned: Any
    roots: Sequence[Tensor]
    structure: tuple[Any, ...]
    precision: Precision
    moves: tuple[Any, ...] = ()
    measure: Callable[[Any], Tensor] | None = None

    def gradients(
        self, outputs: Sequence[Tensor], cotangents: Sequence[Tensor], last: bool
    ) -> list[Tensor | None]:
        """Return the gradient at every call's outputs, then at every copied parameter."""
        recorder = self.recorder
        edges = [edge for call in recorder.calls for edge in call.edges]
        wanted = [*edges, *recorder.copies]
        # torch takes edges as outputs; its annotation does not say that they may be mixed.
        present = cast(list[Tensor], [place for place in wanted if place is not None])
        given = [c.to(output.dtype) for c, output in zip(cotangents, outputs, strict=True)]
        with eager():  # checkpointing runs modules again here
            found = iter(plain_gradients(list(outputs), present, given, keep=not last))
        return [None if place is None else next(found) for place in wanted]

    def uses(
        self, blocks: Sequence[Filled], arrived: Sequence[Tensor | None]
    ) -> dict[str, list[Use]]:
        """Return the uses of every block; UnevenCall if a module cannot be run again."""
        with torch.no_grad():
            return find_uses(self.recorder, self.layouts, blocks, arrived)

    def claim(self, roots: Sequence[Tensor | None], uses: Mapping[str, Sequence[Use]]) -> Claim:
        """Return what has to hold of uses that were made for the gradients at the roots."""
        return Claim(self.batch, self.returned, roots, uses, self.precision, self.measure)


Uses = Mapping[str, Sequence[Use]]
# Of a pass and the gradients at its roots: the uses as far as they are known, judged or made anew.
Judge = Callable[[Passed, Sequence[Tensor | None], Uses | None], dict[str, list[Use]]]


class Tape:
    """What forward returned, and per-example gradients of anything computed from it.

    Args:
        passed: Its graph is alive.
        blocks: The captured blocks.
        judge: Asked whether the uses are right, and for others where they are not.
        count: Number of examples that were asked for: 1 where two copies of one were run.

    Attributes:
        returned: What forward returned, of ``examples`` examples, of which the first ``count`` count.
        precision: What forward was computed in.
    """

    def __init__(self, passed: Passed, blocks: Sequence[Filled], judge: Judge, count: int) -> None:
        self.returned, self.precision = passed.returned, passed.precision
        self._passed, self._blocks, self._judge = passed, blocks, judge
        self._spent = False
        self.examples, self.count = example_count(passed.batch), count

    def gradients(
        self, outputs: Tensor, cotangent: Tensor, last: bool = False
    ) -> dict[str, list[Use]]:
        """Return the uses of every block for the gradient of ``sum(outputs * cotangent)``.

        Args:
            outputs: Any tensor computed from what forward returned: logits, or a loss of shape
                ``(example,)``.
            cotangent: The shape of ``outputs``.
            last: Free the graph; no further call is possible.

        Returns:
            Block name to its uses, of the first ``count`` examples, in the order of the blocks.

        Raises:
            CoverageError: If ``outputs`` has no gradient, a tensor was changed in place, or the
                gradients are not those of the examples.
        """
        if self._spent:
            raise CoverageError("the tape's graph was freed by last=True; record the batch again")
        if not outputs.requires_grad:
            raise CoverageError(
                "the outputs do not depend on any captured parameter; check that forward and the "
                "loss neither detach them nor run under torch.no_grad()"
            )
        for call in self._passed.recorder.calls:
            if changed := call.changed():
                raise CoverageError(changed)
        self._spent = last
        roots = self._roots(outputs, cotangent)
        uses = None
        if not self._passed.separation.whole:
            arrived = self._passed.gradients([outputs], [cotangent], last)
            with suppress(UnevenCall):
                uses = self._passed.uses(self._blocks, arrived)
        with self._passed.recorder.pause():  # the model runs as it is where rows are in doubt
            uses = self._judge(self._passed, roots, uses)
        if self.count == self.examples:
            return uses
        return {name: [use.leading(self.count) for use in some] for name, some in uses.items()}

    def again(self, examples: Sequence[int]) -> Any:
        """Return what forward returns of the given ones of ``examples`` examples, run plainly."""
        separation = self._passed.separation
        with self._passed.recorder.pause():
            return run_plainly(
                separation.forward, separation.model, select(self._passed.batch, list(examples))
            )

    def close(self) -> None:
        """Forget the graph and the recorded inputs."""
        self._spent = True
        self._passed.recorder.calls.clear()
        self._passed.recorder.copies.clear()

    def _roots(self, outputs: Tensor, cotangent: Tensor) -> list[Tensor | None]:
        """Return the gradient at every tensor that forward returned."""
        roots = list(self._passed.roots)
        if not roots:
            return []
        given = cotangent.to(outputs.dtype)
        found = torch.autograd.grad([outputs], roots, [given], retain_graph=True, allow_unused=True)
        for root, gradient in zip(roots, found, strict=True):
            if gradient is not None and (not root.ndim or len(root) != self.examples):
                raise CoverageError(
                    f"forward returns a tensor of shape {tuple(root.shape)} for {self.examples} "
                    "examples, which goes into the loss; what it returns needs the example axis first"
                )
        return list(found)
