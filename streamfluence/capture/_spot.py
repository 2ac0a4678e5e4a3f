"""Look at one example of a batch: every recorded call has to have seen it at its place, as it is alone.

Forward alone, without a backward pass. A model that sorts, gathers or mixes its examples by
whatever means gives a layer another example's values at this place.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from streamfluence.capture._axis import Axis
from streamfluence.capture._nested import example_count
from streamfluence.capture._recorder import Call
from streamfluence.capture._tape import Passed


def out_of_place(passed: Passed, alone: Passed, example: int) -> str | None:
    """Return what saw another example's values, as a sentence, or None.

    Args:
        passed: The batch.
        alone: Two copies of the example, under the same plan.
        example: Its place in the batch.
    """
    count = example_count(passed.batch)
    others = {call.key: call for call in alone.recorder.calls}
    for call in passed.recorder.calls:
        if call.key in others:
            for tensor, own, axis in _pairs(passed, call, others[call.key]):
                seen, expected = axis.split(tensor, count)[example], axis.split(own, 2)[0]
                if not _same(passed, seen, expected):
                    return (
                        f"{call.site.label} sees other values at the place of example {example} than "
                        "it does of that example alone: the model puts its examples in another order "
                        "or mixes them"
                    )
    for root, own in zip(passed.roots, alone.roots, strict=False):
        whole = root.ndim and own.ndim and len(root) == count and len(own) == 2
        if whole and not _same(passed, root.detach()[example], own.detach()[0]):
            return (
                f"what forward returns of example {example} changes with the other examples of its "
                "batch: the model mixes its examples"
            )
    return None


def _pairs(passed: Passed, call: Call, other: Call) -> Iterator[tuple[Tensor, Tensor, Axis]]:
    layout = passed.layouts[call.key]
    if len(call.inputs) == len(other.inputs):
        for tensor, own, axis in zip(call.inputs, other.inputs, layout.inputs, strict=True):
            if axis is not None and own.ndim > axis.index and not own.shape[axis.index] % 2:
                yield tensor.detach(), own.detach(), axis


def _same(passed: Passed, seen: Tensor, expected: Tensor) -> bool:
    """Return whether the values agree; those of another shape, where padding is cut, say nothing."""
    if seen.shape != expected.shape:
        return True
    if not expected.is_floating_point():
        return torch.equal(seen, expected)
    return passed.precision.close(seen, expected, expected)
