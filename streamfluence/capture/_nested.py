"""Nested mappings, tuples and lists of tensors: list the tensors, rebuild, cut a batch.

Everything that is not a container of these kinds or a tensor is passed along as it is.
"""

from collections.abc import Callable, Mapping, MutableMapping
from copy import copy
from typing import Any

import torch
from torch import Tensor

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
    """Return the number of examples of a batch: the common leading length of its tensors.

    Raises:
        InputError: If the batch has no tensor with an axis, or its tensors disagree.
    """
    lengths = {len(leaf) for leaf in leaves(batch) if leaf.ndim}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(
            "every tensor of a batch needs the example axis first and the same, positive number "
            f"of examples; the leading lengths here are {sorted(lengths) or 'none'}"
        )
    return lengths.pop()


def select(batch: Any, examples: list[int]) -> Any:
    """Return the batch that holds the given examples, in that order, repeats allowed."""

    def pick(leaf: Tensor) -> Tensor:
        return leaf[torch.tensor(examples, device=leaf.device)] if leaf.ndim else leaf

    return rebuild(batch, pick)


def resize(batch: Any, examples: int) -> Any:
    """Return ``batch`` cut, or repeated from its start, to ``examples`` examples."""
    count = example_count(batch)
    return select(batch, [number % count for number in range(examples)])


def signature(batch: Any) -> tuple:
    """Return what decides the shapes of a model's calls, the number of examples aside."""
    return tuple((leaf.dtype, tuple(leaf.shape[1:])) for leaf in leaves(batch))


def _like(tree: tuple | list, values: list) -> Any:
    if hasattr(tree, "_fields"):
        return type(tree)(*values)
    return tuple(values) if isinstance(tree, tuple) else values
