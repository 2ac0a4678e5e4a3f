"""Compare what every recorded call sees of an example with what it sees of it in another order, or alone.

Forward alone, without a backward pass. A model that sorts, gathers or mixes its examples by
whatever means gives a layer another example's values at some place.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from streamfluence.capture._axis import Axis
from streamfluence.capture._nested import example_count
from streamfluence.capture._numbers import largest
from streamfluence.capture._recorder import Call
from streamfluence.capture._tape import Passed


def out_of_place(passed: Passed, other: Passed, order: Sequence[int]) -> str | None:
    """Return what saw another example's values, as a sentence, or None.

    Args:
        passed: The batch.
        other: Some of its examples under the same separation.
        order: Their places in the batch.
    """
    count, others = example_count(passed.batch), {call.key: call for call in other.recorder.calls}
    for call in passed.recorder.calls:
        if call.key in others:
            for tensor, own, axis in _pairs(passed, call, others[call.key], len(order)):
                seen, expected = axis.split(tensor, count), axis.split(own, len(order))
                if not _same(passed, seen, expected, order):
                    return (
                        f"{call.site.label} sees other values at the place of an example when the "
                        "examples stand in another order, or alone: the model puts its examples in "
                        "another order, mixes them or treats them by their place in the batch"
                    )
    return None


def _pairs(
    passed: Passed, call: Call, other: Call, count: int
) -> Iterator[tuple[Tensor, Tensor, Axis]]:
    layout = passed.layouts[call.key]
    if len(call.inputs) == len(other.inputs):
        for tensor, own, axis in zip(call.inputs, other.inputs, layout.inputs, strict=True):
            if axis is not None and own.ndim > axis.index and own.shape[axis.index] % count == 0:
                yield tensor.detach(), own.detach(), axis


def _same(passed: Passed, seen: Tensor, expected: Tensor, order: Sequence[int]) -> bool:
    """Return whether the values agree; those of another shape, where padding is cut, say nothing."""
    if seen.shape[1:] != expected.shape[1:]:
        return True
    seen = seen[torch.tensor(order, device=seen.device)]
    if not expected.is_floating_point():
        return torch.equal(seen, expected)
    return passed.precision.close(seen, expected, largest(expected))
