"""Capture per-example gradients of a model: keep examples apart, record by batch, prove where in doubt.

The model is left as it was: hooks live inside `record` only, no parameter's
``requires_grad`` or ``grad`` is touched, and weight gradients are never computed
but to prove a batch. A batch whose graph has the structure of one that was proved is
recorded like it; any other is looked at, proved, or run one example at a time. What
is returned of a batch depends on that batch alone, not on those before it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from streamfluence.batches import in_company
from streamfluence.capture._alone import rows_alone
from streamfluence.capture._blocks import find_blocks
from streamfluence.capture._explicit import Explicit
from streamfluence.capture._graph import Graph
from streamfluence.capture._judge import Judge
from streamfluence.capture._layouts import UnevenCall
from streamfluence.capture._moves import moves, origins
from streamfluence.capture._nested import example_count, leaves, rebuild, resize
from streamfluence.capture._proof import Proof
from streamfluence.capture._recorder import apart
from streamfluence.capture._rehearsal import rehearse
from streamfluence.capture._separation import Separation
from streamfluence.capture._sites import shortened
from streamfluence.capture._tape import Passed, Tape
from streamfluence.capture._trial import refuse_random
from streamfluence.capture._uses import dense_uses
from streamfluence.capture.base import Block, Use, Uses
from streamfluence.errors import CoverageError


class Capture:
    """Per-example gradients of every trainable parameter of a model.

    Args:
        model: In eval mode, on the device of the batches.
        forward: ``forward(model, batch)`` returns the outputs, or a tuple that starts with them.
        batch: One example batch: nested mappings, tuples and lists of tensors with the example
            axis first. It is cut or repeated to two and three examples to decide how.
        exclude: Patterns (``fnmatch``) of parameter names to leave out on purpose.
        alone: Run all of forward for one example at a time, whatever the model's layers are.

    Attributes:
        blocks: The blocks, in the order of the model's parameters.
        one_by_one: Number of batches so far that were run one example at a time although the separation
            was another; nothing announced it.

    Raises:
        CoverageError: If the model is in training mode, is random, has nothing to capture, or mixes
            its examples; the message names what.
        InputError: If the batch has no common example axis, or a pattern matches nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[..., Any],
        batch: Any,
        exclude: Sequence[str] = (),
        alone: bool = False,
    ) -> None:
        refuse_training(model)
        batch = resize(batch, max(2, example_count(batch)))  # one may be squeezed
        self._model, self._forward = model, forward
        self._separation = Separation(model, forward, batch, exclude, alone)
        rehearse(self._separation)
        self._filled = find_blocks(
            self._separation.weights, list(self._separation.sites.values()), self._separation.shared
        )
        self.blocks: tuple[Block, ...] = tuple(filled.block for filled in self._filled)
        if not self.blocks:
            raise CoverageError(
                "forward called no module with a trainable parameter; check that it uses the model"
            )
        self._proof = Proof(model, forward, self._separation.weights, self._filled)
        self._judge = Judge(self._proof, self._filled, self._run)
        tensors = [
            tensor for weight in self._separation.weights for tensor in weight.tensors.values()
        ]
        self._labels = {id(tensor): number for number, tensor in enumerate(tensors)}
        self._variants: dict[tuple[Any, ...], Separation] = {}
        self.one_by_one = 0

    @property
    def announcements(self) -> tuple[str, ...]:
        """What a record should say: what is left out, tied, copied, or takes a slower path."""
        return tuple(self._separation.announcements())

    @contextmanager
    def record(
        self,
        batch: Any,
        prove: Sequence[int] = (),
        seed: int = 0,
        measure: Callable[[Any], Tensor] | None = None,
    ) -> Iterator[Tape]:
        """Run forward on a batch and give a `Tape` to ask gradients of.

        Args:
            prove: Positions of examples whose rows are proved whatever is known of such batches.
            seed: Of the random numbers of the proof.
            measure: From what forward returns to a loss of each example, ``(example,)``. With it
                targets, weights and whatever else is returned beside the outputs is compared, too.

        Raises:
            CoverageError: If the model is in training mode, or uses weights that were left out.
        """
        refuse_training(self._model)
        with ExitStack() as stack:
            count = example_count(batch)
            passed = in_company(lambda given: self._passed(given, stack), batch, count)
            passed.measure = measure

            def judge(passed: Passed, roots: Any, uses: Any) -> dict[str, list[Use]]:
                return self._judged(passed, roots, uses, prove, seed)

            tape = Tape(passed, self._filled, judge, count)
            try:
                yield tape
            finally:
                tape.close()

    def whole(self, gradients: Mapping[str, Tensor | None]) -> Uses:
        """Return gradients by parameter name, of a whole batch, as the uses of one example.

        Any vectors of the parameters' shapes will do; None is zero, and so is what is not there.
        """
        names = {n for weight in self._separation.weights for n in weight.tensors}
        given = {name: gradients.get(name) for name in names}
        found = {f.block.name: f.gathered(given) for f in self._filled}
        return {name: [Explicit(one[None])] for name, one in found.items() if one is not None}

    def by_parameter(self, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a number for every weight, by parameter name and in its shape; ``whole`` undone.

        Args:
            entries: Of each block, shape ``(group, left, right)``; all of one dtype.
        """
        dtype = next(iter(entries.values())).dtype
        shapes = {
            n: t.shape for weight in self._separation.weights for n, t in weight.tensors.items()
        }
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
        """Prove the capture on one batch, more thoroughly than any batch is proved later.

        Args:
            batch: Two or more different examples prove most.
            loss: From what forward returns to one loss per example, shape ``(example,)``.

        Raises:
            CoverageError: If forward is random, a loss or a row changes with the rest of the batch,
                or the rows are not those of their examples; the message names the parameter.
        """
        count = max(2, example_count(batch))
        batch = resize(batch, count)
        refuse_random(self._forward, self._model, batch, loss)
        self._judge = Judge(self._proof, self._filled, self._run)  # what is known spares nothing
        with self.record(batch, range(count), measure=loss) as tape:
            losses = loss(tape.returned)
            if losses.shape != (tape.examples,):
                raise CoverageError(
                    f"the loss has shape {tuple(losses.shape)} for {tape.examples} examples; "
                    "return one loss per example, not their mean"
                )
            tape.gradients(losses, torch.ones_like(losses), last=True)

    def _passed(self, batch: Any, stack: ExitStack) -> Passed:
        """Run forward under the first separation that this batch fits."""
        separation = self._separation
        while True:
            with ExitStack() as attempt:
                try:
                    passed = self._run(separation, batch, attempt)
                except UnevenCall as uneven:
                    separation = self._variant(separation, uneven)
                    continue
                stack.push(attempt.pop_all())
                return passed

    def _run(self, separation: Separation, batch: Any, stack: ExitStack) -> Passed:
        layouts = {} if separation.whole else separation.layouts(batch)
        recorder = separation.recorder(example_count(batch))
        if not separation.whole:
            stack.enter_context(recorder.installed())
        # A place of its own in the graph for each tensor: one may be computed from another.
        returned = rebuild(recorder.run(self._forward, self._model, batch), _apart)
        roots = [tensor for tensor in leaves(returned) if tensor.requires_grad]
        graph = Graph(roots)
        self._refuse_absent(graph)
        read = [t for call in recorder.calls for t in call.inputs if not t.requires_grad]
        given = [tensor for tensor in leaves(returned) if not tensor.requires_grad]
        entered = origins(batch, [*read, *given])
        structure = (separation.lifted, graph.structure(self._labels, recorder.calls), entered)
        precision = graph.precision()
        if separation.whole:
            return Passed(
                batch, separation, recorder, layouts, returned, roots, structure, precision
            )
        separation.refuse_unfit(recorder, layouts, None if self._judge.knows(structure) else graph)
        moved = moves(graph, recorder.calls, recorder.examples)
        return Passed(
            batch, separation, recorder, layouts, returned, roots, structure, precision, moved
        )

    def _variant(self, separation: Separation, uneven: UnevenCall) -> Separation:
        """Return the separation that runs the modules around some layers again, made once."""
        key = (separation.lifted, tuple(site.name for site in uneven.sites), uneven.neighbours)
        if key not in self._variants:
            self._variants[key] = separation.without(uneven)
        return self._variants[key]

    def _judged(
        self,
        passed: Passed,
        roots: Sequence[Tensor | None],
        uses: dict[str, list[Use]] | None,
        prove: Sequence[int],
        seed: int,
    ) -> dict[str, list[Use]]:
        """Return uses that are right: those given, or new ones of one example at a time."""
        if uses is not None and self._judge.believes(
            passed, passed.claim(roots, uses), prove, seed
        ):
            return uses
        self.one_by_one += not self._separation.whole
        return self._one_by_one(passed, roots)

    def _one_by_one(self, passed: Passed, roots: Sequence[Tensor | None]) -> dict[str, list[Use]]:
        weights = [
            weight for weight in self._separation.weights if weight not in self._separation.absent
        ]
        rows = rows_alone(self._model, self._forward, passed.claim(roots, {}), weights)
        return dense_uses(self._filled, rows, example_count(passed.batch))

    def _refuse_absent(self, graph: Graph) -> None:
        """Refuse a batch that uses a weight which the examples it was decided with did not use."""
        absent = {id(t): w for w in self._separation.absent for t in w.tensors.values()}
        used = [absent[id(t)].names[0] for _, t in graph.leaves() if id(t) in absent]
        if used:
            raise CoverageError(
                f"{shortened(used)}: not used by the first examples, which decided what is captured, "
                "but by a later one; put an example that uses it among the first of the training "
                f"set, or exclude {shortened(used)}"
            )


def _apart(tensor: Tensor) -> Tensor:
    return apart(tensor) if tensor.requires_grad else tensor


def refuse_training(model: nn.Module) -> None:
    """Raise CoverageError if any part of a model is in training mode."""
    names = [name or "the model itself" for name, part in model.named_modules() if part.training]
    if names:
        raise CoverageError(
            f"the model is in training mode ({shortened(names)}), where dropout and batch "
            "statistics make gradients random or mix the examples; call model.eval() first"
        )
