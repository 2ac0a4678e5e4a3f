"""Operations between the recorded calls that can put examples in another order, and what they did.

Where a model sorts its batch, regroups it or drops its padding, the graph looks the same
for every batch; only the indices differ, and so does whose row lies at which place. What
moves whole examples is therefore part of what makes two forward passes alike. Inside a
module that is run again for each example nothing of this matters.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from streamfluence.capture._graph import Graph, region
from streamfluence.capture._nested import leaves
from streamfluence.capture._recorder import Call

_BY_INDEX = {"IndexBackward0", "IndexPutBackward0", "IndexPutImplBackward0", "EmbeddingBackward0"}
_MOVING = _BY_INDEX | {
    *("IndexSelectBackward0", "IndexAddBackward0", "IndexCopyBackward0", "IndexReduceBackward0"),
    *(
        "IndexFillBackward0",
        "IndexFillBackward1",
        "GatherBackward0",
        "TakeBackward0",
        "PutBackward0",
    ),
    *("ScatterBackward0", "ScatterBackward1", "ScatterAddBackward0", "ScatterReduceBackward0"),
    *("MaskedSelectBackward0", "MaskedScatterBackward0", "SortBackward0", "SortBackward1"),
    *("TopkBackward0", "FlipBackward0", "RollBackward0", "SelectBackward0", "SliceBackward0"),
    *("SplitBackward0", "SplitWithSizesBackward0", "SegmentReduceBackward0"),
    *("AsStridedBackward0", "SelectScatterBackward0", "SliceScatterBackward0", "UnfoldBackward0"),
}
_PRODUCTS = {"MmBackward0", "BmmBackward0"}  # with a matrix that is no weight: one may permute


def moves(graph: Graph, calls: Sequence[Call], examples: int) -> tuple[Any, ...]:
    """Return what moved whole examples between the recorded calls, hashable; () if nothing did.

    Args:
        graph: Of what forward returned.
        calls: Of the same forward.
        examples: Number of examples in the batch.
    """
    wanted = _MOVING | _PRODUCTS
    found = [(place, n) for place, n in enumerate(graph.children) if n.name() in wanted]
    if not found:
        return ()
    inside: set[Node] = set().union(*(region(graph, call) for call in calls))
    made = ((place, _move(node, examples)) for place, node in found if node not in inside)
    return tuple((place, *move) for place, move in made if move)


def origins(batch: Any, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """Return of each tensor which part of the batch it is, as far as it is one: hashable.

    A model that reads its data and returns its targets as the batch has them, and once does not,
    may have sorted them, which no graph shows: neither has a gradient.
    """
    parts = [leaf for leaf in leaves(batch) if leaf.ndim]
    return tuple(_origin(tensor, parts) for tensor in tensors)


def _origin(tensor: Tensor, parts: Sequence[Tensor]) -> tuple[int, str] | None:
    """Return the number of the part, and whether it is all of it or a text without an end."""
    for number, part in enumerate(parts):
        if tensor.ndim != part.ndim or tensor.dtype != part.dtype or len(tensor) != len(part):
            continue
        if tensor.shape == part.shape:
            if _equal(tensor, part):
                return number, "all"
        elif tensor.shape[1] < part.shape[1] and tensor.shape[2:] == part.shape[2:]:
            length = tensor.shape[1]
            if _equal(tensor, part[:, :length]):
                return number, "start"
            if _equal(tensor, part[:, -length:]):
                return number, "end"
    return None


def _equal(a: Tensor, b: Tensor) -> bool:
    """Return whether all entries are the same; NaN, a target that is missing, is the same as NaN."""
    return a.device == b.device and bool(((a == b) | ((a != a) & (b != b))).all())


def _move(node: Node, examples: int) -> tuple[Any, ...]:
    """Return what one operation did to the first axis, () if every example stayed where it was."""
    name = node.name()
    saved = dict(_saved(node))
    if name in _PRODUCTS:
        matrix = saved.get("self")
        first = node.next_functions[0][0]
        if first is not None or not isinstance(matrix, Tensor):
            return ()
        if matrix.ndim == 3 and matrix.shape[0] % examples == 0:
            return ()  # one matrix an example
        return name, _digest(matrix)
    if not _on_the_first_axis(saved) or _keeps(name, saved, examples):
        return ()
    return name, *(
        (key, _digest(value) if isinstance(value, Tensor) else value)
        for key, value in saved.items()
        if _tells(key, value)
    )


def _saved(node: Node) -> Iterator[tuple[str, Any]]:
    for attribute in dir(node):
        if attribute.startswith("_saved_"):
            value = getattr(node, attribute)
            name = attribute.removeprefix("_saved_")
            if name == "indices" and isinstance(value, tuple):
                yield from ((f"indices{n}", one) for n, one in enumerate(value))
            else:
                yield name, value


def _tells(key: str, value: Any) -> bool:
    """Return whether a saved value says where examples went; sizes only say how many there are."""
    if isinstance(value, Tensor):
        return not value.is_floating_point()
    plain = isinstance(value, (int, tuple)) and ("size" not in key or key.startswith("split"))
    return plain and "stride" not in key


def _on_the_first_axis(saved: dict[str, Any]) -> bool:
    """Return whether an operation works on the first axis; if it does not say, it may."""
    for key in ("dim", "dims", "axis", "dimension"):
        if key in saved:
            axes = saved[key] if isinstance(saved[key], tuple) else (saved[key],)
            sizes = saved.get("self_sym_sizes")
            signed = [axis - (1 << 64) if axis >= 1 << 63 else axis for axis in axes]
            return any(a == 0 or (a < 0 and (sizes is None or a == -len(sizes))) for a in signed)
    return True


def _keeps(name: str, saved: dict[str, Any], examples: int) -> bool:
    """Return whether an operation leaves every example at its place, as far as can be seen."""
    if name == "SliceBackward0":
        size = saved["self_sym_sizes"][0]
        return bool(saved["start"] == 0 and saved["end"] >= size and saved["step"] == 1)
    if name in _BY_INDEX and "indices0" in saved and saved["indices0"] is None:
        return True  # the first axis is not indexed at all
    index = saved.get("indices0", saved.get("indices", saved.get("index")))
    if name in ("IndexAddBackward0", "IndexCopyBackward0") and isinstance(index, Tensor):
        return index.ndim == 1 and _same(index, torch.arange(len(index)))
    if name not in _BY_INDEX | {"IndexSelectBackward0"} or not isinstance(index, Tensor):
        return False
    if index.dtype in (torch.bool, torch.uint8) or not index.ndim or len(index) % examples:
        return False
    entries = saved.get("self_sym_sizes", (saved.get("weight_sym_argsize_0", examples),))[0]
    if entries % examples:
        return False
    owners = torch.arange(len(index)) // (len(index) // examples)
    return _same(index // (entries // examples), owners.view(-1, *[1] * (index.ndim - 1)))


def _same(found: Tensor, expected: Tensor) -> bool:
    return bool((found == expected.to(found.device)).all())


def _digest(tensor: Tensor) -> tuple[Any, ...]:
    values = tensor.detach().cpu().contiguous()
    if values.dtype == torch.bfloat16:
        values = values.float()
    return tuple(tensor.shape), hash(values.numpy().tobytes()) if math.prod(tensor.shape) else 0
