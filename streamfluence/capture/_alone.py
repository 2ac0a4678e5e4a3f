"""The last resort: all of forward, one example at a time, by plain autograd on the model as it is."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from streamfluence.capture._claim import Claim
from streamfluence.capture._match import Changed, matched
from streamfluence.capture._nested import example_count, leaves, replace, select
from streamfluence.capture._plain import plain_gradients, run_plainly
from streamfluence.capture._sites import Weight
from streamfluence.capture._trial import refuse_random
from streamfluence.errors import CoverageError

_MOST_BYTES = 8 << 30  # of gradients of one batch, which are held whole


def rows_alone(
    model: nn.Module, forward: Callable[..., Any], claim: Claim, weights: Sequence[Weight]
) -> dict[Weight, Tensor]:
    """Return per-example gradients by weight, ``(example, *its shape)``.

    Args:
        claim: Of the whole batch; no uses are needed.
        weights: The wanted ones.

    Raises:
        CoverageError: If what forward returns of an example depends on the rest of its batch or is
            random, or the gradients of one batch would fill the memory.
    """
    count = example_count(claim.batch)
    sizes = [t.numel() for w in weights for t in w.tensors.values()]
    if (needed := 4 * count * sum(sizes)) > _MOST_BYTES:
        raise CoverageError(
            f"this model needs all of forward run for one example at a time, and the gradients of a "
            f"batch of {count} would take {needed / 2**30:.0f} GiB; lower compute.batch_size"
        )
    rows: dict[Weight, list[Tensor]] = {weight: [] for weight in weights}
    tensors = [tensor for weight in weights for tensor in weight.tensors.values()]
    for example in range(count):
        try:
            pairs = _pairs(model, forward, claim, example)
        except Changed:
            refuse_random(forward, model, claim.batch, claim.measure)
            raise
        found = iter(_gradients(pairs, tensors))
        for weight in weights:
            parts = [g for _ in weight.tensors if (g := next(found)) is not None]
            zero = torch.zeros_like(next(iter(weight.tensors.values())))
            rows[weight].append(sum(parts, zero))
    return {weight: torch.stack(some).detach() for weight, some in rows.items()}


def _pairs(
    model: nn.Module, forward: Callable[..., Any], claim: Claim, example: int
) -> list[tuple[Tensor, Tensor]]:
    """Return the outputs of one example that have a gradient, with the gradient there."""
    try:
        returned = run_plainly(forward, model, select(claim.batch, [example]))
        return matched(_unsqueezed(returned, claim), claim, [example])
    except (CoverageError, torch.OutOfMemoryError):
        raise
    except Exception:
        # A batch of one may be squeezed away; of two copies the first is as good.
        pair = [example, example]
        found = matched(run_plainly(forward, model, select(claim.batch, pair)), claim, pair)
        for _, cotangent in found:
            cotangent[1:] = 0
        return found


def _unsqueezed(returned: Any, claim: Claim) -> Any:
    """Return what forward returned of one example with the axis of examples where it is lost."""
    again, count = leaves(returned), example_count(claim.batch)
    if len(again) != len(claim.pairs):
        return returned
    return replace(
        returned,
        [
            tensor[None] if tensor.ndim + 1 == whole.ndim and len(whole) == count else tensor
            for tensor, (whole, _) in zip(again, claim.pairs, strict=True)
        ],
    )


def _gradients(
    pairs: Sequence[tuple[Tensor, Tensor]], tensors: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    if not pairs:
        return [None] * len(tensors)
    outputs = [output for output, _ in pairs]
    return plain_gradients(outputs, tensors, [c.to(output.dtype) for output, c in pairs])
