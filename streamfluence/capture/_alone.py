"""The last resort: all of forward, one example at a time, by plain autograd on the model as it is."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from streamfluence.capture._nested import example_count, leaves, select
from streamfluence.capture._numbers import Precision
from streamfluence.capture._recorder import plain_gradients, run_plainly
from streamfluence.capture._sites import Weight
from streamfluence.errors import CoverageError

_MOST_BYTES = 8 << 30  # of gradients of one batch, which are held whole


def rows_alone(
    model: nn.Module,
    forward: Callable,
    batch: Any,
    returned: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
    weights: Sequence[Weight],
    precision: Precision,
) -> dict[Weight, Tensor]:
    """Return per-example gradients by weight, ``(example, *its shape)``.

    Args:
        returned: The tensors with a gradient that forward returned of the whole batch.
        cotangents: The gradient at each of them, the examples first; None where there is none.
        weights: The wanted ones.
        precision: Of forward.

    Raises:
        CoverageError: If what forward returns of an example depends on the rest of its batch, or
            the gradients of one batch would fill the memory.
    """
    count, sizes = example_count(batch), [t.numel() for w in weights for t in w.tensors.values()]
    if (needed := 4 * count * sum(sizes)) > _MOST_BYTES:
        raise CoverageError(
            f"this model needs all of forward run for one example at a time, and the gradients of a "
            f"batch of {count} would take {needed / 2**30:.0f} GiB; lower compute.batch_size"
        )
    rows: dict[Weight, list[Tensor]] = {weight: [] for weight in weights}
    for example in range(count):
        one = _run(model, forward, batch, example)
        outputs, given = [], []
        for tensor, whole, cotangent in _pairs(one, returned, cotangents, example):
            if cotangent is not None:
                outputs.append(tensor)
                given.append(_fitted(tensor, whole, cotangent, example, precision))
        tensors = [tensor for weight in weights for tensor in weight.tensors.values()]
        found = iter(plain_gradients(outputs, tensors, given))
        for weight in weights:
            parts = [g for _ in weight.tensors if (g := next(found)) is not None]
            zero = torch.zeros_like(next(iter(weight.tensors.values())))
            rows[weight].append(sum(parts, zero))
    return {weight: torch.stack(some).detach() for weight, some in rows.items()}


def _run(model: nn.Module, forward: Callable, batch: Any, example: int) -> list[Tensor]:
    """Return the tensors that forward returns of one example."""
    try:
        return leaves(run_plainly(forward, model, select(batch, [example])))
    except torch.OutOfMemoryError:
        raise
    except Exception:
        # A batch of one may be squeezed away; of two copies the first is as good.
        return leaves(run_plainly(forward, model, select(batch, [example, example])))


def _pairs(one, returned, cotangents, example):
    """Yield each tensor of one example with what the whole batch has in its place."""
    own = [tensor for tensor in one if tensor.requires_grad]
    if len(own) != len(returned):
        raise CoverageError(
            f"forward returns {len(returned)} tensors with a gradient for a batch, but {len(own)} "
            f"for its example {example} alone, so the example has no gradient of its own"
        )
    return zip(own, returned, cotangents, strict=True)


def _fitted(
    tensor: Tensor, whole: Tensor, cotangent: Tensor, example: int, precision: Precision
) -> Tensor:
    """Return an example's cotangent in the shape that forward gives it alone.

    A model may cut padding to the longest text of its batch: what is cut must not count.
    """
    own = tensor.detach()
    own = own[None] if own.shape == whole.shape[1:] else own  # a batch of one, squeezed
    places = (slice(example, example + 1), *(slice(0, size) for size in own.shape[1:]))
    found, values = cotangent[places], whole.detach()[places]
    lost = cotangent[example].count_nonzero() - found.count_nonzero()
    if found.shape != own[:1].shape or int(lost):
        raise CoverageError(
            f"forward returns {tuple(tensor.shape)} for one example alone and "
            f"{tuple(whole.shape)} for its batch, so the two cannot be compared; return outputs "
            "whose shape does not depend on the rest of the batch"
        )
    counts = found.ne(0)
    if not precision.close(own[:1][counts], values[counts], values):
        raise CoverageError(
            f"what forward returns of example {example} changes with the other examples of its "
            "batch, or comes in another order than the batch: the model mixes the examples, so "
            "they have no gradient of their own; return outputs in the batch's order that depend "
            "on their own example only"
        )
    others = found.new_zeros(len(own) - 1, *found.shape[1:])  # a second copy does not count
    return torch.cat([found, others]).reshape(tensor.shape).to(tensor.dtype)
