"""Batches as people have them: nested containers whose leaves are cut by example, in one place.

Mappings, named tuples, dataclasses, and lists and tuples that hold arrays are containers. What is
cut by example is a *leaf*:

- an array (tensor or numpy, of numbers, strings or objects), along its first axis;
- a list or tuple with one entry an example, whatever the entries are: strings, dicts, objects.

Everything else (numbers, None, settings) belongs to all examples and is passed along whole. A list
without arrays whose length is the number of examples is taken for a leaf. A batch of two examples
with a list of two settings would look the same, so whoever knows better says so: readers mark their
lists by `marked`, and what is cut here stays marked.
"""

from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from streamfluence.errors import InputError

T = TypeVar("T")


class ListOfExamples(list[Any]):
    """A list with one entry an example."""


class TupleOfExamples(tuple[Any, ...]):
    """A tuple with one entry an example."""


class SharedList(list[Any]):
    """A list without arrays that belongs to all examples together."""


class SharedTuple(tuple[Any, ...]):
    """A tuple without arrays that belongs to all examples together."""


_BY_EXAMPLE = (ListOfExamples, TupleOfExamples)
_SHARED = (SharedList, SharedTuple)


def is_array(value: Any) -> bool:
    """Return whether a value is a tensor or a numpy array."""
    return isinstance(value, np.ndarray | Tensor)


def children(tree: Any) -> list[tuple[Any, Any]] | None:
    """Return the ``(key, value)`` pairs of a container, None of anything else; a list is one."""
    if isinstance(tree, Mapping):
        return list(tree.items())
    if isinstance(tree, list | tuple):
        return list(enumerate(tree))
    if is_dataclass(tree) and not isinstance(tree, type):
        return [(field.name, getattr(tree, field.name)) for field in fields(tree)]
    return None


def refilled(tree: Any, values: Sequence[Any]) -> Any:
    """Return a container of the kind of ``tree`` with other values, in the order of `children`."""
    if isinstance(tree, dict | UserDict):
        same = copy(tree)  # transformers' encodings have attributes beside their entries
        for key, value in zip(tree, values, strict=True):  # its outputs refuse update()
            same[key] = value
        return same
    if isinstance(tree, Mapping):
        return dict(zip(tree, values, strict=True))
    if hasattr(tree, "_fields"):
        return type(tree)(*values)
    if isinstance(tree, list | tuple):
        return _of_kind(tree, values)
    same = copy(tree)
    for field, value in zip(fields(tree), values, strict=True):
        object.__setattr__(same, field.name, value)
    return same


def map_arrays(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return ``tree`` with ``function`` applied to every array in it, inside leaves that are lists too."""
    if is_array(tree):
        return function(tree)
    inside = children(tree)
    if inside is None:
        return tree
    return refilled(tree, [map_arrays(function, value) for _, value in inside])


def fresh(batch: Any) -> Any:
    """Return a copy of a batch, its containers and its arrays, that may be changed at will."""
    copies: dict[int, Any] = {}  # what is one array in the batch is one in the copy

    def copied(array: Any) -> Any:
        if id(array) not in copies:
            tensor = isinstance(array, Tensor)
            copies[id(array)] = array.detach().clone() if tensor else array.copy()
        return copies[id(array)]

    return map_arrays(copied, batch)


def leaves(batch: Any) -> Iterator[tuple[str, Any]]:
    """Yield ``(place, leaf)`` of every leaf; a place reads ``/inputs/0``."""
    lengths = list(_lengths(batch, ""))
    yield from _leaves(batch, "", lengths[0][1] if lengths else _plain_length(batch))


def example_count(batch: Any) -> int:
    """Return the number of examples of ``batch``.

    Raises:
        InputError: If it holds no leaf, or leaves that disagree.
    """
    lengths = list(_lengths(batch, ""))
    if not lengths:
        count = _plain_length(batch)
        if count < 0:
            raise InputError(
                f"a batch must hold arrays with a leading example axis, not {batch!r:.200}"
            )
        return count
    if min(length for _, length in lengths) < 0 or len({length for _, length in lengths}) > 1:
        listed = ", ".join(f"{at or 'batch'}: {n if n >= 0 else 'none'}" for at, n in lengths)
        raise InputError(
            f"the arrays of a batch must have the example axis first and one number of "
            f"examples, but have {listed}"
        )
    return lengths[0][1]


def cut(batch: Any, start: int, stop: int) -> Any:
    """Return examples ``start`` to ``stop`` of ``batch``; its arrays are views."""
    return _map_leaves(lambda leaf: leaf[start:stop], batch, example_count(batch))


def select(batch: Any, examples: Sequence[int] | np.ndarray | Tensor) -> Any:
    """Return the batch that holds the given examples, in that order, repeats allowed."""
    return select_of(batch, examples, example_count(batch))


def select_of(tree: Any, examples: Sequence[int] | np.ndarray | Tensor, count: int) -> Any:
    """Return what belongs to the given ones of ``count`` examples, and whole what has no such axis."""
    places = torch.as_tensor(examples, dtype=torch.int64)

    def pick(leaf: Any) -> Any:
        if len(leaf) != count:
            return leaf
        if isinstance(leaf, Tensor):
            return leaf[places.to(leaf.device)]
        if isinstance(leaf, np.ndarray):
            return leaf[places.cpu().numpy()]
        return [leaf[place] for place in places.tolist()]

    return _map_leaves(pick, tree, count)


def in_company(run: Callable[[Any], T], given: Any, count: int) -> T:
    """Return ``run(given)``; of one example that fails, ``run`` of two copies of it.

    What squeezes loses the only axis of a batch of one. Of two copies the first is as good, so all
    that follows uses the first ``count`` of what is returned.
    """
    try:
        return run(given)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # the user's code may raise anything
        if count != 1:
            raise
    return run(select_of(given, [0, 0], 1))


def join(batches: Sequence[Any]) -> Any:
    """Return one batch of all examples of ``batches``, which have the same structure."""
    return _joined(batches, [example_count(batch) for batch in batches])


def list_lengths(batch: Any, place: str = "") -> dict[str, int]:
    """Return the length of every list and tuple, by place."""
    found = {place: len(batch)} if _is_list(batch) else {}
    for key, value in children(batch) or []:
        found |= list_lengths(value, f"{place}/{key}")
    return found


def marked(batch: Any, by_example: Mapping[str, bool], count: int, place: str = "") -> Any:
    """Return ``batch`` with its lists marked as having one entry an example, or not.

    Args:
        by_example: Of every list, by place, whether it has one entry an example. A list that is
            not named has, if it is as long as the batch.
        count: The number of examples.
    """
    inside = children(batch)
    if inside is None:
        return batch
    if _is_list(batch):
        if by_example.get(place, len(batch) == count):
            return _by_example(batch, batch)
        if not _holds_arrays(batch):
            return SharedTuple(batch) if isinstance(batch, tuple) else SharedList(batch)
    values = [marked(value, by_example, count, f"{place}/{key}") for key, value in inside]
    return refilled(batch, values)


def _map_leaves(function: Callable[[Any], Any], batch: Any, count: int) -> Any:
    """Return ``batch`` with ``function`` applied to every leaf, and its lists marked."""
    if is_array(batch):
        return function(batch) if batch.ndim else batch
    if _is_leaf_list(batch, count):
        return _by_example(batch, function(batch))
    inside = children(batch)
    if inside is None or isinstance(batch, _SHARED):
        return batch
    if _is_list(batch) and not _holds_arrays(batch):
        return SharedTuple(batch) if isinstance(batch, tuple) else SharedList(batch)
    return refilled(batch, [_map_leaves(function, value, count) for _, value in inside])


def _leaves(batch: Any, place: str, count: int) -> Iterator[tuple[str, Any]]:
    if is_array(batch) or _is_leaf_list(batch, count):
        yield place, batch
    elif not isinstance(batch, _SHARED):
        for key, value in children(batch) or []:
            yield from _leaves(value, f"{place}/{key}", count)


def _lengths(batch: Any, place: str) -> Iterator[tuple[str, int]]:
    """Yield place and length of all that is sure to be cut by example; -1 where there is no axis."""
    if is_array(batch):
        yield place, len(batch) if batch.ndim else -1
    elif isinstance(batch, _BY_EXAMPLE):
        yield place, len(batch)
    elif not isinstance(batch, _SHARED):
        for key, value in children(batch) or []:
            yield from _lengths(value, f"{place}/{key}")


def _plain_length(batch: Any) -> int:
    """Return the length of the outermost lists of a batch without arrays, -1 if they have no one."""
    found = {length for _, length in _plain_lengths(batch)}
    return found.pop() if len(found) == 1 else -1


def _plain_lengths(batch: Any) -> Iterator[tuple[str, int]]:
    if _is_list(batch):
        yield "", len(batch)
    else:
        for _, value in children(batch) or []:
            yield from _plain_lengths(value)


def _joined(parts: Sequence[Any], counts: Sequence[int]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts)) if first.ndim else first
    if isinstance(first, np.ndarray):
        return np.concatenate(parts) if first.ndim else first
    if all(_is_leaf_list(part, count) for part, count in zip(parts, counts, strict=True)):
        return _by_example(first, [each for part in parts for each in part])
    inside = [children(part) for part in parts]
    if inside[0] is None or (_is_list(first) and not _holds_arrays(first)):
        return first
    by_key = [dict(pairs or []) for pairs in inside]
    return refilled(first, [_joined([pairs[key] for pairs in by_key], counts) for key in by_key[0]])


def _is_leaf_list(value: Any, count: int) -> bool:
    if isinstance(value, (*_BY_EXAMPLE, *_SHARED)):
        return isinstance(value, _BY_EXAMPLE)
    return _is_list(value) and len(value) == count and not _holds_arrays(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and not hasattr(value, "_fields")


def _holds_arrays(tree: Any) -> bool:
    return is_array(tree) or any(_holds_arrays(value) for _, value in children(tree) or [])


def _by_example(like: Any, values: Sequence[Any]) -> Any:
    return TupleOfExamples(values) if isinstance(like, tuple) else ListOfExamples(values)


def _of_kind(tree: list[Any] | tuple[Any, ...], values: Sequence[Any]) -> Any:
    """Return a list or tuple of values, marked as ``tree`` is."""
    if isinstance(tree, (*_BY_EXAMPLE, *_SHARED)):
        return type(tree)(values)
    return tuple(values) if isinstance(tree, tuple) else list(values)
