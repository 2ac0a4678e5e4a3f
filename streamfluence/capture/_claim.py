"""What has to hold of a captured batch, and how forward's own values show that it does not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamfluence.capture._blocks import Filled
from streamfluence.capture._nested import example_count
from streamfluence.capture._numbers import Precision
from streamfluence.capture.base import Use


@dataclass(frozen=True)
class Fault:
    """What a proof found.

    Attributes:
        what: A sentence.
        blocks: Those whose rows do not add up; none where forward's own values do not fit.
    """

    what: str
    blocks: tuple[Filled, ...] = ()


@dataclass(frozen=True)
class Claim:
    """What has to hold of one batch.

    Attributes:
        batch: The examples, as they were captured.
        returned: The tensors with a gradient that forward returned of them.
        cotangents: The gradient at each, the examples first; None where there is none.
        uses: What was captured for these gradients.
        precision: Of forward.
    """

    batch: Any
    returned: Sequence[Tensor]
    cotangents: Sequence[Tensor | None]
    uses: Mapping[str, Sequence[Use]]
    precision: Precision

    def finite(self, examples: Sequence[int]) -> list[int]:
        """Return those of ``examples`` whose outputs and gradients there are finite."""
        count = example_count(self.batch)
        good = torch.ones(count, dtype=torch.bool)
        for tensor in (*self.returned, *(c for c in self.cotangents if c is not None)):
            if tensor.ndim and len(tensor) == count:
                good &= torch.isfinite(tensor.detach().reshape(count, -1)).all(1).cpu()
        return [example for example in examples if bool(good[example])]


def same_shapes(again: Sequence[Tensor], returned: Sequence[Tensor], count: int) -> bool:
    return len(again) == len(returned) and all(
        a.shape == (count, *b.shape[1:]) for a, b in zip(again, returned, strict=True) if b.ndim
    )


def values_fault(again: Sequence[Tensor], claim: Claim, order: list[int]) -> Fault | None:
    """Compare what forward returned of every example with what it returned in the other order."""
    if not same_shapes(again, claim.returned, len(order)):
        return Fault(
            "forward returns tensors of other shapes for the same examples in another order, so "
            "they cannot be told apart; return one row per example, in the batch's order"
        )
    for a, b, cotangent in zip(again, claim.returned, claim.cotangents, strict=True):
        if cotangent is None:
            continue
        a, b = a.detach(), b.detach()
        same = claim.precision.close
        if not same(a, b[torch.tensor(order, device=b.device)], b):
            wrong = (p for p, e in enumerate(order) if not same(a[p], b[e], b))
            return Fault(_moved(a, b, next(wrong), order, claim.precision))
    return None


def _moved(a: Tensor, b: Tensor, place: int, order: Sequence[int], precision: Precision) -> str:
    """Return what happened to an example whose values are not where they belong."""
    example = order[place]
    same = [p for p in range(len(order)) if p != place and precision.close(a[p], b[example], b)]
    if same:
        return (
            f"forward does not return its examples in the order of the batch: what it returned of "
            f"example {example} comes at place {same[0]} when that example is given at place {place}. "
            "Outputs and targets that are sorted or regrouped do not belong to the examples they "
            "stand at; put them back in the batch's order before returning them"
        )
    return (
        f"what forward returns of example {example} changes with the other examples of its batch or "
        "with their order: the model mixes its examples, so they have no gradient of their own; "
        "return outputs that depend on their own example only"
    )
