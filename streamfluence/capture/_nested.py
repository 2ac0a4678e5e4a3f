"""Nested mappings, tuples and lists of tensors: list the tensors, rebuild, cut a batch.

Everything that is not a container of these kinds or a tensor is passed along as it is. What of a
batch is cut by example, `batches` decides, for tensors and everything else in it.
"""

from collections.abc import Callable, Mapping, MutableMapping
from copy import copy
from typing import Any

from torch import Tensor

from streamfluence import batches
from streamfluence.errors import InputError


def leaves(tree: Any) -> list[Tensor]:
    """Return the tensors of ``tree``, depth first."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    if not isinstance(tree, (tuple, list)):
        return []
    return [leaf for value in tree for leaf in leaves(value)]


def rebuild(tree: Any, function: Callable[[Tensor], Any]) -> Any:
    """Return ``tree`` with every tensor replaced by ``function`` of it, visited as in `leaves`."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, MutableMapping):
        # A copy keeps the mapping's own type (transformers' BatchEncoding has attributes).
        same = copy(tree)
        for key, value in tree.items():  # its outputs refuse update()
            same[key] = rebuild(value, function)
        return same
    if isinstance(tree, (tuple, list)):
        return _like(tree, [rebuild(value, function) for value in tree])
    return tree


def replace(tree: Any, tensors: list[Tensor]) -> Any:
    """Return ``tree`` with its tensors replaced by ``tensors``, in the order of `leaves`."""
    source = iter(tensors)
    return rebuild(tree, lambda _: next(source))


def example_count(batch: Any) -> int:
    """Return the number of examples of a batch: the common length of its leaves.

    Raises:
        InputError: If the batch has no leaf, none in them, or its leaves disagree.
    """
    count = batches.example_count(batch)
    if not count:
        raise InputError("a batch needs at least one example, but its example axis has none")
    return count


def select(batch: Any, examples: list[int]) -> Any:
    """Return the batch that holds the given examples, in that order, repeats allowed."""
    return batches.select(batch, examples)


def resize(batch: Any, examples: int) -> Any:
    """Return ``batch`` cut, or repeated from its start, to ``examples`` examples."""
    count = example_count(batch)
    return select(batch, [number % count for number in range(examples)])


def signature(batch: Any) -> tuple[Any, ...]:
    """Return what decides the shapes of a model's calls, the number of examples aside."""
    return tuple(
        (leaf.dtype, tuple(leaf.shape[1:]))
        if isinstance(leaf, Tensor)
        else tuple(sorted({str((t.dtype, tuple(t.shape))) for t in leaves(leaf)}))
        for _, leaf in batches.leaves(batch)
    )


def _like(tree: tuple[Any, ...] | list[Any], values: list[Any]) -> Any:
    if hasattr(tree, "_fields"):
        return type(tree)(*values)
    return tuple(values) if isinstance(tree, tuple) else values
