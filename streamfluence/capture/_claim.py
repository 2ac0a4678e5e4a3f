"""What has to hold of a captured batch, and what a proof finds where it does not."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from streamfluence.capture._blocks import Filled
from streamfluence.capture._nested import example_count, leaves, replace
from streamfluence.capture._numbers import Precision, largest
from streamfluence.capture._plain import plain_gradients
from streamfluence.capture.base import Use


@dataclass(frozen=True)
class Fault:
    """What a proof found.

    Attributes:
        what: A sentence.
        blocks: Those whose rows do not add up; none where forward's own values do not fit.
        small: Whether rounding may be the cause.
    """

    what: str
    blocks: tuple[Filled, ...] = ()
    small: bool = False


@dataclass(frozen=True)
class Claim:
    """What has to hold of one batch.

    Attributes:
        batch: The examples, as they were captured.
        returned: What forward returned of them.
        roots: The gradient at each tensor in it that has one, the examples first; None where none
            arrives.
        uses: What was captured for these gradients.
        precision: Of forward.
        measure: From what forward returns to a loss of each example, shape ``(example,)``; None
            where nothing but the outputs is known.
    """

    batch: Any
    returned: Any
    roots: Sequence[Tensor | None]
    uses: Mapping[str, Sequence[Use]]
    precision: Precision
    measure: Callable[[Any], Tensor] | None = None

    @cached_property
    def pairs(self) -> list[tuple[Tensor, Tensor | None]]:
        """Every tensor that forward returned, with the gradient there."""
        given = iter(self.roots)
        tensors = leaves(self.returned)
        return [(t.detach(), next(given) if t.requires_grad else None) for t in tensors]

    @cached_property
    def cotangents(self) -> list[Tensor]:
        """The gradients at the outputs that have one."""
        return [cotangent for cotangent in self.roots if cotangent is not None]

    @cached_property
    def losses(self) -> list[Tensor]:
        """What is measured of each example, then its gradient at every output that has one."""
        return self.measured(self.returned, [tensor for tensor, _ in self.pairs])

    def measured(self, returned: Any, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the same of what forward returned of other examples, with these tensors in it."""
        if self.measure is None:
            return []
        arriving = [cotangent is not None for _, cotangent in self.pairs]
        given = [t.detach().requires_grad_(at) for t, at in zip(tensors, arriving, strict=True)]
        outputs = [tensor for tensor in given if tensor.requires_grad]
        with torch.enable_grad():
            # Clones, as a loss may change them in place.
            losses = self.measure(replace(returned, [tensor.clone() for tensor in given]))
        if not losses.requires_grad:
            return [losses]
        found = plain_gradients([losses], outputs, [torch.ones_like(losses)])
        pairs = zip(outputs, found, strict=True)
        return [losses.detach(), *(torch.zeros_like(o) if g is None else g for o, g in pairs)]

    def size(self, output: Tensor) -> float:
        """Return the size of the numbers that an output is computed from, as far as it shows."""
        # Losses, which a task without a likelihood returns, are differences of numbers of size 1.
        least = 1.0 if isinstance(self.returned, Tensor) else 0.0
        return max(largest(output), least)

    def finite(self, examples: Sequence[int]) -> list[int]:
        """Return those of ``examples`` whose outputs and gradients there are finite."""
        good = torch.ones(example_count(self.batch), dtype=torch.bool)
        for output, cotangent in self.pairs:
            if cotangent is not None:
                for tensor in (output, cotangent):
                    good &= torch.isfinite(tensor.reshape(len(good), -1)).all(1).cpu()
        return [example for example in examples if bool(good[example])]
