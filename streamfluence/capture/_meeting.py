"""Tell from the shapes of a forward pass whether numbers of several examples meet in one.

Forward runs on two examples, and on three by giving the second twice. An axis that is longer then
is one of examples. Whatever sums over it, scales by it or pairs two of it lets examples meet,
with gradients or without, even where a factor that is still 0 hides it from every value.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from streamfluence.capture._nested import example_count, select

# These pick examples or only ask for their type; where they put them, the values show.
_PICKING = {"select", "slice", "unbind", "split", "split_with_sizes", "as_strided", "detach"}
_MAKING = ("new_", "empty", "zeros", "ones", "full")
_ALONG = {
    *("_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp", "cummax", "cummin"),
    *("sort", "flip", "roll"),
}  # whose last number is the axis
# The axis of the first and of the second factor that is summed over, counted from the last.
_PRODUCTS = {"mm": (-1, -2), "bmm": (-1, -2), "mv": (-1, -1), "dot": (-1, -1)}
_ADDED = {"addmm": "mm", "baddbmm": "bmm", "addmv": "mv"}  # after a first argument


def examples_meet(run: Callable[[Any], Any], batch: Any) -> bool:
    """Return whether examples meet in forward; False where it cannot be told.

    Args:
        run: Runs forward on a batch, and whatever measures its losses.
    """
    last = example_count(batch) - 1
    try:
        two, three = (_steps(run, select(batch, some)) for some in ([0, last], [0, last, last]))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a tensor type, or a mode of the model's own, that takes no other
        return False
    if [step.name for step in two] != [step.name for step in three]:
        return False
    return any(_meet(*steps) for steps in zip(two, three, strict=True))


@dataclass(frozen=True)
class _Step:
    """One operation: its name and settings, and the shapes of its floating-point tensors."""

    name: str
    numbers: tuple[int, ...]
    flags: tuple[bool, ...]
    inputs: list[torch.Size]
    outputs: list[torch.Size]


class _Steps(TorchDispatchMode):
    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.found: list[_Step] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        given = tree_leaves(args)
        flags = tuple(value for value in given if isinstance(value, bool))
        numbers = tuple(v for v in given if isinstance(v, int) and not isinstance(v, bool))
        name = func.overloadpacket.__name__
        self.found.append(_Step(name, numbers, flags, [*_shapes(given)], [*_shapes(output)]))
        return output


def _steps(run: Callable[[Any], Any], batch: Any) -> list[_Step]:
    with _Steps() as steps:
        run(batch)
    met: list[_Step] = steps.found
    return met


def _shapes(tree: Any) -> Iterator[torch.Size]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
            yield leaf.shape


def _meet(two: _Step, three: _Step) -> bool:
    """Return whether examples meet in one operation."""
    name = two.name
    if name in _PICKING or name.startswith(_MAKING):
        return False
    inputs, outputs = _longer(two.inputs, three.inputs), _longer(two.outputs, three.outputs)
    if any(len(axes) > 1 for axes in outputs):
        return True  # pairs of examples
    if any(inputs) and outputs and not any(outputs):
        return True  # one number of all
    if name in _ALONG and inputs and two.numbers:
        return two.numbers[-1] % max(len(two.inputs[0]), 1) in inputs[0]
    if "batch_norm" in name:
        return any(two.flags)
    plain = _ADDED.get(name, name)
    if plain not in _PRODUCTS:
        return False
    factors = list(zip(two.inputs, inputs, strict=True))[-2:]
    summed = zip(factors, _PRODUCTS[plain], strict=True)
    return any(len(shape) + axis in axes for (shape, axes), axis in summed)


def _longer(two: Sequence[torch.Size], three: Sequence[torch.Size]) -> list[set[int]]:
    """Return of each tensor the axes that are longer with three examples."""
    return [
        {axis for axis, sizes in enumerate(zip(a, b, strict=False)) if sizes[0] != sizes[1]}
        for a, b in zip(two, three, strict=False)
    ]
