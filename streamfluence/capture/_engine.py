"""Capture per-example gradients of a model: plan once, record batch by batch, check on one.

The model is left as it was: hooks live inside `record` only, no parameter's
``requires_grad`` or ``grad`` is touched, and weight gradients are never computed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from streamfluence.capture._blocks import find_blocks
from streamfluence.capture._check import check_rows, check_sums, compared
from streamfluence.capture._nested import example_count, leaves, resize, select
from streamfluence.capture._plan import Plan
from streamfluence.capture._sites import shortened
from streamfluence.capture._tape import Tape
from streamfluence.capture.base import Block, Dense, Uses
from streamfluence.errors import CoverageError


class Capture:
    """Per-example gradients of every trainable parameter of a model.

    Args:
        model: In eval mode, on the device of the batches.
        forward: ``forward(model, batch)`` returns the outputs, or a tuple that starts with them.
        batch: One example batch: nested mappings, tuples and lists of tensors with the example
            axis first. It is cut or repeated to two and three examples to plan.
        exclude: Patterns (``fnmatch``) of parameter names to leave out on purpose.

    Attributes:
        blocks: The blocks, in the order of the model's parameters.

    Raises:
        CoverageError: If the model is in training mode, has nothing to capture, or has a
            parameter whose gradient cannot be kept apart by example; the message names it.
        InputError: If the batch has no common example axis, or a pattern matches nothing.
    """

    def __init__(
        self, model: nn.Module, forward: Callable, batch: Any, exclude: Sequence[str] = ()
    ) -> None:
        _refuse_training(model)
        example_count(batch)
        self._model, self._forward = model, forward
        self._plan = Plan(model, forward, batch, exclude)
        self._filled = find_blocks(
            self._plan.weights, list(self._plan.sites.values()), self._plan.shared
        )
        self.blocks: tuple[Block, ...] = tuple(filled.block for filled in self._filled)
        if not self.blocks:
            raise CoverageError(
                "forward called no module with a trainable parameter; check that it uses the model"
            )
        self._rehearse(resize(batch, 2))

    @property
    def announcements(self) -> tuple[str, ...]:
        """What a record should say: what is left out, tied, copied, or takes a slower path."""
        slow = [
            f"one example at a time (vmap failed: {site.fallback.vmap_failure}): {site.label}"
            for site in self._plan.sites.values()
            if site.fallback.vmap_failure is not None
        ]
        return (*self._plan.said, *slow)

    @contextmanager
    def record(self, batch: Any) -> Iterator[Tape]:
        """Run forward on a batch and give a `Tape` to ask gradients of.

        Raises:
            CoverageError: If the model is in training mode, or runs in a way that was not planned.
        """
        _refuse_training(self._model)
        layouts = self._plan.layouts(batch)
        recorder = self._plan.recorder(example_count(batch))
        with recorder.installed():
            returned = recorder.run(self._forward, self._model, batch)
            tape = Tape(returned, recorder, layouts, self._filled)
            try:
                yield tape
            finally:
                tape.close()

    def whole(self, gradients: Mapping[str, Tensor | None]) -> Uses:
        """Return gradients by parameter name, of a whole batch, as the uses of one example.

        Any vectors of the parameters' shapes will do; None is zero, and so is what is not there.
        """
        names = {n for weight in self._plan.weights for n in weight.tensors}
        given = {name: gradients.get(name) for name in names}
        found = {f.block.name: f.gathered(given) for f in self._filled}
        return {name: [Dense(one[None])] for name, one in found.items() if one is not None}

    def by_parameter(self, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a number for every weight, by parameter name and in its shape; ``whole`` undone.

        Args:
            entries: Of each block, shape ``(group, left, right)``; all of one dtype.
        """
        dtype = next(iter(entries.values())).dtype
        shapes = {n: t.shape for weight in self._plan.weights for n, t in weight.tensors.items()}
        zeros = {n: torch.zeros(s, dtype=dtype, requires_grad=True) for n, s in shapes.items()}
        total = torch.zeros((), dtype=dtype)
        for filled in self._filled:
            block = filled.gathered(zeros)
            assert block is not None
            total = total + (block * entries[filled.block.name].cpu()).sum()
        # A block's entries are its parameters' in another order, so derivatives put them back.
        found = torch.autograd.grad(total, list(zeros.values()), materialize_grads=True)
        return dict(zip(zeros, found, strict=True))

    def check(self, batch: Any, loss: Callable[[Any], Tensor]) -> None:
        """Prove the capture on one batch.

        Args:
            batch: Two or more different examples prove most.
            loss: From what forward returns to one loss per example, shape ``(example,)``.

        Raises:
            CoverageError: If the rows do not add up to autograd's gradient of the batch, or an
                example's row changes with the rest of its batch; the message names the parameter.
        """
        uses = self._measure(batch, loss)
        check_sums(self._filled, self._plan.weights, uses, self._batch_gradient(batch, loss))
        for examples, pairs in compared(example_count(batch)):
            alone = self._measure(select(batch, examples), loss)
            check_rows(self._filled, uses, alone, pairs)

    def _measure(self, batch: Any, loss: Callable[[Any], Tensor]) -> dict:
        with self.record(batch) as tape:
            losses = loss(tape.returned)
            if losses.shape != (example_count(batch),):
                raise CoverageError(
                    f"the loss has shape {tuple(losses.shape)} for {example_count(batch)} examples; "
                    "return one loss per example, not their mean"
                )
            return tape.gradients(losses, torch.ones_like(losses), last=True)

    def _batch_gradient(self, batch: Any, loss: Callable) -> dict[str, Tensor | None]:
        tensors = {name: t for weight in self._plan.weights for name, t in weight.tensors.items()}
        with torch.enable_grad():
            total = loss(self._forward(self._model, batch)).sum()
        found = torch.autograd.grad(total, list(tensors.values()), allow_unused=True)
        return dict(zip(tensors, found, strict=True))

    def _rehearse(self, batch: Any) -> None:
        """Run the fallbacks once, so that a failing vmap is announced before any real batch."""
        if any(site.rule is None for site in self._plan.sites.values()):
            with self.record(batch) as tape:
                outputs = next(t for t in leaves(tape.returned) if t.requires_grad)
                tape.gradients(outputs, torch.ones_like(outputs), last=True)


def _refuse_training(model: nn.Module) -> None:
    names = [name or "the model itself" for name, part in model.named_modules() if part.training]
    if names:
        raise CoverageError(
            f"the model is in training mode ({shortened(names)}), where dropout and batch "
            "statistics make gradients random or mix the examples; call model.eval() first"
        )
