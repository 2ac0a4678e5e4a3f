"""Prove, on one batch, that row e of what was captured is the gradient of example e.

For random numbers r the gradient of ``sum_e r_e value_e``, which plain autograd gives
without any hook, is ``sum_e r_e row_e``. Rows that lie at another example's place, that lack
a use of a weight or mix the examples break this with probability one. The plain side sees
the examples in another order, so a forward that returns them in an order of its own shows too.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from streamfluence.capture._blocks import Filled
from streamfluence.capture._claim import Claim, Fault, same_shapes, values_fault
from streamfluence.capture._nested import example_count, leaves, select
from streamfluence.capture._numbers import Precision, norm
from streamfluence.capture._recorder import plain_gradients, run_plainly
from streamfluence.capture._rows import example_row, weighted_sum
from streamfluence.capture._sites import Weight, shortened
from streamfluence.capture._trial import refuse_random
from streamfluence.capture.base import Use
from streamfluence.errors import CoverageError


class Proof:
    """Compares what is captured of a model with plain autograd.

    Args:
        model, forward: As they are captured.
        weights: Every weight that has to be captured.
        blocks: The captured blocks.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable,
        weights: Sequence[Weight],
        blocks: Sequence[Filled],
    ) -> None:
        self._model, self._forward = model, forward
        self._weights, self._blocks = weights, blocks

    def fault(self, claim: Claim, examples: Sequence[int], seed: int) -> Fault | None:
        """Return what is wrong with the rows of some examples, None if they are right.

        Args:
            examples: Positions in the batch; the plain side sees these alone, in this order.
            seed: Of the random numbers.

        Raises:
            CoverageError: If forward returns something else for the same batch every time.
        """
        if all(cotangent is None for cotangent in claim.cotangents):
            return None
        count = example_count(claim.batch)
        examples = claim.finite(examples)
        if not examples:
            return None
        # Never one alone, which forward may squeeze away: then twice, and the second does not count.
        few = list(examples) if len(examples) > 1 else [*examples, *examples]
        for order in (few, turned(count, seed)):
            factors = _factors(len(order), seed, claim)
            if order is few:
                factors[len(examples) :] = 0
            else:
                factors *= _chosen(order, examples).to(factors)
            again = self._plain(select(claim.batch, order))
            if same_shapes(again, claim.returned, len(order)):
                break
        # What forward returns of these examples alone may be shorter; of all of them it is not.
        fault = values_fault(again, claim, order)
        if fault is None:
            gradients = self._gradients(again, claim.cotangents, order, factors)
            fault = self._sums_fault(claim, order, factors, gradients)
        if fault is not None:
            refuse_random(self._forward, self._model, claim.batch)
        if fault is not None and fault.blocks:
            return self._in_the_same_order(claim, seed)
        return fault

    def fault_alone(self, claim: Claim, examples: Sequence[int]) -> Fault | None:
        """Return the first example for which forward returns something else alone than in its batch."""
        for example in examples:
            # Two copies, as a batch of one may be squeezed.
            again = self._plain(select(claim.batch, [example, example]))
            # Alone it may be shorter, where padding is cut; its values are compared elsewhere then.
            fits = same_shapes(again, claim.returned, 2)
            if fits and (fault := values_fault(again, claim, [example, example])):
                return fault
        return None

    def refuse_moved_loss(
        self, losses: Tensor, alone: Tensor, example: int, precision: Precision
    ) -> None:
        """Refuse losses of a batch among which an example's own is not what it is alone.

        Raises:
            CoverageError: With whether the order or the company of the batch is the cause.
        """
        same = precision.close
        if same(alone[0], losses[example], losses):
            return
        places = [p for p in range(len(losses)) if same(alone[0], losses[p], losses)]
        if places:
            raise CoverageError(
                f"the losses are not in the order of the batch: that of example {example} comes at "
                f"place {places[0]}; return outputs and targets in the batch's order"
            )
        raise CoverageError(
            f"the loss of example {example} changes with the other examples of its batch: "
            f"{float(losses[example]):.6g} among them, {float(alone[0]):.6g} alone. The model mixes its "
            "examples, so they have no gradient of their own; keep them apart"
        )

    def _in_the_same_order(self, claim: Claim, seed: int) -> Fault | None:
        """Ask again where the plain side computes exactly what was captured, rounding included."""
        order = list(range(example_count(claim.batch)))
        factors = _factors(len(order), seed, claim)
        factors *= _chosen(order, claim.finite(order)).to(factors)
        again = self._plain(claim.batch)
        gradients = self._gradients(again, claim.cotangents, order, factors)
        return self._sums_fault(claim, order, factors, gradients)

    def _plain(self, batch: Any) -> list[Tensor]:
        returned = leaves(run_plainly(self._forward, self._model, batch))
        return [tensor for tensor in returned if tensor.requires_grad]

    def _gradients(
        self,
        returned: Sequence[Tensor],
        cotangents: Sequence[Tensor | None],
        order: list[int],
        factors: Tensor,
    ) -> dict[str, Tensor | None]:
        named = {name: t for weight in self._weights for name, t in weight.tensors.items()}
        outputs, given = [], []
        for tensor, cotangent in zip(returned, cotangents, strict=True):
            if cotangent is not None:
                outputs.append(tensor)
                shape = (-1, *[1] * (cotangent.ndim - 1))
                part = cotangent[torch.tensor(order, device=cotangent.device)]
                by = factors.to(part).view(shape)
                # A factor 0 leaves an example out, also one whose gradient is not finite.
                given.append(torch.where(by == 0, 0.0, part * by).to(tensor.dtype))
        found = plain_gradients(outputs, list(named.values()), given)
        return dict(zip(named, found, strict=True))

    def _sums_fault(
        self,
        claim: Claim,
        order: list[int],
        factors: Tensor,
        gradients: Mapping[str, Tensor | None],
    ) -> Fault | None:
        whole = norm([g for g in gradients.values() if g is not None])
        if missed := self._uncovered(gradients):
            return Fault(
                f"{missed} has a gradient, but nothing that is captured has one for it; call its "
                f"module in forward, or exclude {missed}"
            )
        spread = torch.zeros(example_count(claim.batch), dtype=factors.dtype)
        spread.index_add_(0, torch.tensor(order), factors)
        wrong, said = [], ""
        for filled in self._blocks:
            found = weighted_sum(filled, claim.uses[filled.block.name], spread)
            expected = filled.gathered(gradients)
            expected = torch.zeros_like(found) if expected is None else expected.to(found.dtype)
            error, scale = norm([found - expected]), norm([expected])
            if not math.isfinite(scale):
                continue  # autograd's own is not finite: such rows are set aside, none is believed
            if not error <= claim.precision.allowed(scale, whole):
                wrong.append(filled)
                said = said or f"error {error:.2g}, its norm {scale:.2g}"
        if not wrong:
            return None
        names = shortened([name for filled in wrong for name in filled.block.parameters])
        return Fault(
            f"{names}: the per-example gradients do not add up to autograd's gradient ({said}): rows "
            "do not belong to their examples. The model puts its examples in another order or mixes "
            f"them, or uses a weight outside its module's call; change that, or exclude {names}",
            tuple(wrong),
        )

    def _uncovered(self, gradients: Mapping[str, Tensor | None]) -> str | None:
        covered = {name for filled in self._blocks for name in filled.block.parameters}
        for name, gradient in gradients.items():
            if name not in covered and gradient is not None and bool(gradient.any()):
                return name
        return None


def compared(examples: int) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Return small batches, as examples of the whole one, and the pairs of positions to compare."""
    last = examples - 1
    if examples > 2:
        return [([0, last], [(0, 0), (last, 1)])]
    if examples == 2:
        return [([0], [(0, 0)]), ([1], [(1, 0)])]
    return [([0, 0], [(0, 0), (0, 1)])]


def row_faults(
    blocks: Sequence[Filled],
    uses: Mapping[str, Sequence[Use]],
    alone: Mapping[str, Sequence[Use]],
    pairs: Sequence[tuple[int, int]],
    precision: Precision,
) -> Fault | None:
    """Return the block in which an example's gradient depends on the rest of its batch, if there is one.

    Args:
        uses: Of the batch.
        alone: Of a smaller batch with some of its examples.
        pairs: ``(position in the batch, position in the smaller batch)`` of an example.
    """
    for together, apart in pairs:
        expected = {f.block.name: example_row(f, alone[f.block.name], apart) for f in blocks}
        whole = norm(expected.values())
        for filled in blocks:
            one = expected[filled.block.name]
            error = norm([example_row(filled, uses[filled.block.name], together) - one])
            if not error <= precision.allowed(norm([one]), whole):
                names = shortened(filled.block.parameters)
                return Fault(
                    f"{names}: the gradient of example {together} changes with the other examples "
                    f"of its batch (difference {error:.2g}, norm {norm([one]):.2g}): the model mixes "
                    f"its examples, so they have no gradient of their own; keep them apart, or "
                    f"exclude {names}",
                    (filled,),
                )
    return None


def turned(count: int, seed: int) -> list[int]:
    """Return an order of so many examples in which every one stands at another's place: one cycle."""
    # One cycle leaves no part of a batch to itself, so sorting by anything shows.
    generator = torch.Generator().manual_seed(seed)
    cycle = torch.randperm(count, generator=generator)
    order = torch.empty_like(cycle)
    order[cycle] = cycle.roll(1)
    return order.tolist()


def _factors(count: int, seed: int, claim: Claim) -> Tensor:
    """Return random numbers of size 1, of both signs."""
    dtype = next(c.dtype for c in claim.cotangents if c is not None)
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(seed)
    size = 0.5 + torch.rand(count, generator=generator, dtype=dtype)
    return size * (2 * torch.randint(0, 2, (count,), generator=generator) - 1)


def _chosen(order: Sequence[int], examples: Sequence[int]) -> Tensor:
    return torch.isin(torch.tensor(order), torch.tensor(examples))
