"""Tensors that a model keeps from one forward to the next with the graph that computed them.

A weight that is merged once and kept leads the gradient of every later forward through the first
one, whose graph is gone by then.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from streamfluence.capture._graph import Graph
from streamfluence.capture._nested import leaves
from streamfluence.capture._plain import run_plainly
from streamfluence.capture._sites import shortened
from streamfluence.errors import CoverageError


def refuse_kept(forward: Callable[..., Any], model: nn.Module, batch: Any) -> None:
    """Refuse a model that computes with what it kept of an earlier forward, graph and all.

    Args:
        batch: One that the model was run on before.

    Raises:
        CoverageError: With the names of the attributes.
    """
    before = _computed(model)
    if not before:
        return
    graph, after = Graph(leaves(run_plainly(forward, model, batch))), _computed(model)
    same = [(name, tensor) for name, tensor in before.items() if after.get(name) is tensor]
    used = [name for name, tensor in same if get_gradient_edge(tensor).node in graph.children]
    if used:
        raise CoverageError(
            f"{shortened(used)}: kept from an earlier forward together with the graph that computed it "
            "(a merged or cached weight, say), so the gradient of a later forward leads through an "
            "earlier one; compute it anew in every forward"
        )


def _computed(model: nn.Module) -> Mapping[str, Tensor]:
    """Return the tensors with a graph that the model's modules hold, by name."""
    found, seen = {}, set[int]()
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            for tensor in _inside(value, seen):
                if tensor.grad_fn is not None:
                    found[f"{name}.{attribute}".removeprefix(".")] = tensor
    return found


def _inside(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Yield the tensors in plain containers, which may hold themselves, or a whole vocabulary."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple) and id(value) not in seen:
        seen.add(id(value))
        for one in value.values() if isinstance(value, dict) else value:
            yield from _inside(one, seen)
