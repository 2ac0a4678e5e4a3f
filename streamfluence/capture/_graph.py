"""What autograd's graph tells of a forward pass: its structure, and where the recorded calls miss something.

A recorded call accounts for its weights when whatever leads to them enters through the
call's outputs. A path that reaches a weight, or the inside of a call, from elsewhere
carries gradient that nobody would collect. That is seen in the graph whatever the values
are: a weight that is read for missing values only is found before a value is missing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from streamfluence.capture._numbers import Precision
from streamfluence.capture._recorder import Call
from streamfluence.capture._sites import Site, Weight

Edge = tuple[Node, int]


@dataclass(frozen=True)
class Miss:
    """Gradient that no recorded call collects.

    Attributes:
        sites: The modules whose surroundings have to be run again to collect it.
        weight: The weight that is used outside every call; None where a call's inside is used.
    """

    sites: tuple[Site, ...]
    weight: Weight | None = None


class Graph:
    """Everything behind some tensors, in the order of a walk that depends on the structure alone.

    Args:
        roots: What forward returned; those without a gradient are passed over.
    """

    def __init__(self, roots: Sequence[Tensor]) -> None:
        # Nodes are Python objects only while somebody holds them, so this map keeps them alive.
        self.roots = [_edge(root) for root in roots if root.requires_grad]
        self.children: dict[Node, list[Edge]] = {}
        stack = [node for node, _ in reversed(self.roots)]
        while stack:
            node = stack.pop()
            if node not in self.children:
                found = [(c, number) for c, number in node.next_functions if c is not None]
                self.children[node] = found
                stack.extend(child for child, _ in reversed(found))

    def structure(self, labels: Mapping[int, int]) -> int:
        """Return a hash of all operations, of how they are joined and which parameters they reach.

        Args:
            labels: A number for every parameter, by the ``id`` of its tensor.
        """

        def label(node: Node) -> int:
            return labels.get(id(getattr(node, "variable", None)), -1)

        places = {node: place for place, node in enumerate(self.children)}
        lines = [
            (node.name(), label(node), *((places[child], number) for child, number in found))
            for node, found in self.children.items()
        ]
        return hash((tuple((places[node], number) for node, number in self.roots), *lines))

    def precision(self) -> Precision:
        """Return what the steps of the graph were computed in."""
        steps = [step for node in self.children for step in node._input_metadata]
        cuda = any(step.device.type == "cuda" for step in steps)
        return Precision.of({step.dtype for step in steps}, cuda)

    def leaves(self) -> Iterator[tuple[Node, Tensor]]:
        """Yield the nodes of tensors that were not computed, with the tensor."""
        for node in self.children:
            variable = getattr(node, "variable", None)
            if variable is not None:
                yield node, variable

    def edges(self) -> Iterator[tuple[Node | None, Edge]]:
        """Yield every edge with the node that it comes from, None for what forward returned."""
        yield from ((None, edge) for edge in self.roots)
        for node, found in self.children.items():
            yield from ((node, edge) for edge in found)


def find_miss(graph: Graph, calls: Sequence[Call], weights: Sequence[Weight]) -> Miss | None:
    """Return the first gradient that the recorded calls would miss, None if they see all.

    Args:
        graph: Of what forward returned.
        calls: Of the same forward.
        weights: All that have to be captured; copies that stand for some are leaves of their own.
    """
    by_tensor = {id(tensor): weight for weight in weights for tensor in weight.tensors.values()}
    leaves = {node: by_tensor[id(t)] for node, t in graph.leaves() if id(t) in by_tensor}
    parents: dict[Node, list[Node]] = {}
    for node, found in graph.children.items():
        for child, _ in found:
            parents.setdefault(child, []).append(node)
    regions = [_Region(graph, call, leaves, parents) for call in calls]
    outputs = {edge for region in regions for edge in region.outputs}
    alone = _weight_only(graph, leaves, parents, outputs)
    inside: dict[Node, list[_Region]] = {}
    for region in regions:
        for node in region.inside:
            inside.setdefault(node, []).append(region)
    for source, (node, number) in graph.edges():
        if node in alone:
            weight = alone[node]
            through = (node, number) in outputs or source in alone
            if not through and not any(r.covers(weight, source) for r in regions):
                sites = {r.call.site.name: r.call.site for r in regions if r.owns(weight)}
                return Miss(tuple(sites.values()), weight)
            continue
        for region in inside.get(node, ()):
            if source not in region.nodes and (node, number) not in region.outputs:
                return Miss((region.call.site,))
    return None


class _Region:
    """What one call computed: the nodes between its outputs and its inputs.

    Attributes:
        outputs: The edges by which the rest of the graph may enter.
        nodes: All of them.
        inside: Those from which a weight that the call accounts for is reached.
    """

    def __init__(
        self,
        graph: Graph,
        call: Call,
        leaves: Mapping[Node, Weight],
        parents: Mapping[Node, Sequence[Node]],
    ) -> None:
        self.call = call
        self.outputs = {(e.node, e.output_nr) for e in call.edges if e is not None}
        stops = {edge.node for edge in call.sources}
        self.nodes: set[Node] = set()
        stack = [node for node, _ in self.outputs if node in graph.children]
        while stack:
            node = stack.pop()
            if node not in self.nodes and node not in stops:
                self.nodes.add(node)
                stack.extend(child for child, _ in graph.children[node])
        own = set(call.site.weights.values())
        stack = [node for node in self.nodes if leaves.get(node) in own]
        self.inside: set[Node] = set()
        while stack:
            node = stack.pop()
            if node in self.nodes and node not in self.inside:
                self.inside.add(node)
                stack.extend(parents.get(node, ()))

    def owns(self, weight: Weight) -> bool:
        return weight in self.call.site.weights.values()

    def covers(self, weight: Weight, source: Node | None) -> bool:
        """Return whether ``source`` is part of this call and the call accounts for ``weight``."""
        return source in self.nodes and self.owns(weight)


def _weight_only(
    graph: Graph,
    leaves: Mapping[Node, Weight],
    parents: Mapping[Node, Sequence[Node]],
    outputs: set[Edge],
) -> dict[Node, Weight]:
    """Return the nodes that depend on one weight and nothing else, outside every call: casts, transposes."""
    found = dict(leaves)
    stack = list(leaves)
    while stack:
        node = stack.pop()
        for parent in parents.get(node, ()):
            edges = graph.children[parent]
            same = all(found.get(child) is found[node] for child, _ in edges)
            if parent not in found and same and not any(edge in outputs for edge in edges):
                found[parent] = found[node]
                stack.append(parent)
    return found


def _edge(tensor: Tensor) -> Edge:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr
