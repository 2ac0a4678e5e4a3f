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
from streamfluence.capture._claim import Claim, Fault
from streamfluence.capture._match import Changed, matched
from streamfluence.capture._nested import example_count, select
from streamfluence.capture._numbers import norm
from streamfluence.capture._plain import plain_gradients, run_plainly
from streamfluence.capture._sites import Weight, shortened
from streamfluence.capture._trial import refuse_random
from streamfluence.capture.base import weighted_sum

_MOST_ALONE = 16  # examples of a batch that are compared with each of them alone
_RECOMPUTED = 5  # times the usual error, where the gradient of a tiny loss is computed again


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
        forward: Callable[..., Any],
        weights: Sequence[Weight],
        blocks: Sequence[Filled],
    ) -> None:
        self._model, self._forward = model, forward
        self._weights, self._blocks = weights, blocks

    def run(self, claim: Claim) -> Callable[[Any], Any]:
        """Return what runs forward on a batch, and measures its losses."""

        def run(batch: Any) -> Any:
            returned = run_plainly(self._forward, self._model, batch)
            return returned if claim.measure is None else claim.measure(returned)

        return run

    def fault(self, claim: Claim, examples: Sequence[int], seed: int) -> Fault | None:
        """Return what is wrong with the rows of some examples, None if they are right.

        Args:
            examples: Positions in the batch; the plain side sees these alone, in this order.
            seed: Of the random numbers.

        Raises:
            CoverageError: If forward returns something else for the same batch every time.
        """
        if not claim.cotangents or not (examples := claim.finite(examples)):
            return None
        # Never one alone, which forward may squeeze away: then twice, and the second does not count.
        few = list(examples) if len(examples) > 1 else [*examples, *examples]
        if few == sorted(few):  # in the batch's own order a forward that sorts would not show
            few = few[::-1]
        factors = _factors(len(few), seed, claim)
        factors[len(examples) :] = 0
        try:
            fault = self._sums_fault(claim, few, factors)
        except Changed as changed:
            fault = Fault(str(changed))
        if fault is not None:
            refuse_random(self._forward, self._model, claim.batch, claim.measure)
        if fault is not None and fault.blocks and fault.small:
            return self._in_the_same_order(claim, seed)
        return fault

    def fault_in_company(self, claim: Claim, examples: Sequence[int], seed: int) -> Fault | None:
        """Return what is wrong with the rows of examples without those that are not given.

        Args:
            examples: Positions in the batch in a random order. The first run alone; if there are
                more, each half of all runs without the other.
            seed: Of the random numbers.
        """
        parts = [[example] for example in examples[:_MOST_ALONE]]
        if len(examples) > _MOST_ALONE:
            parts += [list(examples[::2]), list(examples[1::2])]
        return self.first_fault(claim, parts, seed)

    def first_fault(self, claim: Claim, parts: Sequence[Sequence[int]], seed: int) -> Fault | None:
        """Return what is wrong with the rows of the first examples that are not right."""
        found = (self.fault(claim, part, seed) for part in parts)
        return next((fault for fault in found if fault is not None), None)

    def _in_the_same_order(self, claim: Claim, seed: int) -> Fault | None:
        """Ask again where the plain side computes exactly what was captured, rounding included."""
        order = list(range(example_count(claim.batch)))
        factors = _factors(len(order), seed, claim)
        factors *= torch.isin(torch.tensor(order), torch.tensor(claim.finite(order))).to(factors)
        return self._sums_fault(claim, order, factors)

    def _gradients(
        self, claim: Claim, order: list[int], factors: Tensor
    ) -> dict[str, Tensor | None]:
        """Return plain autograd's gradient of the weighted sum over some examples alone."""
        named = {name: t for weight in self._weights for name, t in weight.tensors.items()}
        returned = run_plainly(self._forward, self._model, select(claim.batch, order))
        outputs, given = [], []
        for tensor, part in matched(returned, claim, order):
            by = factors.to(part).view(-1, *[1] * (part.ndim - 1))
            outputs.append(tensor)
            # A factor 0 leaves an example out, also one whose gradient is not finite.
            given.append(torch.where(by == 0, 0.0, part * by).to(tensor.dtype))
        if not outputs:
            return dict.fromkeys(named)
        found = plain_gradients(outputs, list(named.values()), given)
        return dict(zip(named, found, strict=True))

    def _sums_fault(self, claim: Claim, order: list[int], factors: Tensor) -> Fault | None:
        gradients = self._gradients(claim, order, factors)
        whole = norm([g for g in gradients.values() if g is not None])
        if missed := self._uncovered(gradients):
            return Fault(
                f"{missed} has a gradient, but nothing that is captured has one for it; call its "
                f"module in forward, or exclude {missed}"
            )
        spread = torch.zeros(example_count(claim.batch), dtype=factors.dtype)
        spread.index_add_(0, torch.tensor(order), factors)
        wrong, said, small = [], "", True
        for filled in self._blocks:
            found = weighted_sum(filled.block, claim.uses[filled.block.name], spread)
            expected = filled.gathered(gradients)
            expected = torch.zeros_like(found) if expected is None else expected.to(found.dtype)
            error, scale = norm([found - expected]), norm([expected])
            if not math.isfinite(scale):
                continue  # autograd's own is not finite: such rows are set aside, none is believed
            if not error <= claim.precision.allowed(scale, whole):
                wrong.append(filled)
                small &= error <= _RECOMPUTED * claim.precision.allowed(scale, whole)
                said = said or f"error {error:.2g}, its norm {scale:.2g}"
        if not wrong:
            return None
        names = shortened([name for filled in wrong for name in filled.block.parameters])
        return Fault(
            f"{names}: the per-example gradients do not add up to autograd's gradient ({said}): rows "
            "do not belong to their examples. The model puts its examples in another order or mixes "
            f"them, or uses a weight outside its module's call; change that, or exclude {names}",
            tuple(wrong),
            small,
        )

    def _uncovered(self, gradients: Mapping[str, Tensor | None]) -> str | None:
        covered = {name for filled in self._blocks for name in filled.block.parameters}
        for name, gradient in gradients.items():
            if name not in covered and gradient is not None and bool(gradient.any()):
                return name
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
    dtype = claim.cotangents[0].dtype
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(seed)
    size = 0.5 + torch.rand(count, generator=generator, dtype=dtype)
    return size * (2 * torch.randint(0, 2, (count,), generator=generator) - 1)
