"""Cut the captured weights into blocks, and say which part of a block each call fills.

A layer's weight and bias share a block where both belong to that layer alone.
A weight that several modules use is one block in the weight's own orientation,
whatever the orientation of the layers.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streamfluence.capture._explicit import Explicit
from streamfluence.capture._recorder import SharedParameter
from streamfluence.capture._sites import Site, Weight
from streamfluence.capture.base import Block, Use
from streamfluence.errors import CoverageError

Place = tuple[Site | SharedParameter, str]  # where a weight is used, and its path there


@dataclass(frozen=True)
class Filled:
    """A block, the weights in it, and how they lie in it.

    Attributes:
        block: What consumers see.
        matrix: The weight that fills all columns, or all but the last.
        bias: The weight of the last column, if there are two.
        transposed: Whether the matrix is stored ``(right, left)``.
    """

    block: Block
    matrix: Weight
    bias: Weight | None
    transposed: bool

    def dense(self, weight: Weight, gradient: Tensor) -> Explicit:
        """Return per-example gradients of one of the two weights, ``(example, *its shape)``, as a use."""
        if self.bias is None:
            return Explicit(_arranged(gradient, self.block, self.transposed))
        block = self.block
        whole = gradient.new_zeros(len(gradient), block.groups, block.left, block.right)
        if weight is self.bias:
            whole[..., -1] = gradient.reshape(len(gradient), block.groups, block.left)
        else:
            whole[..., :-1] = _arranged(gradient, block, self.transposed)
        return Explicit(whole)

    def gathered(self, gradients: Mapping[str, Tensor | None]) -> Tensor | None:
        """Return whole-batch gradients by parameter name as this block's matrices, or None."""
        matrix, bias = (_total(weight, gradients) for weight in (self.matrix, self.bias))
        if matrix is None and bias is None:
            return None
        block = self.block
        shape = (1, block.groups, block.left, block.right - (self.bias is not None))
        some = matrix if matrix is not None else bias
        assert some is not None
        parts = [some.new_zeros(shape)]
        if matrix is not None:
            parts = [_arranged(matrix[None], block, self.transposed)]
        if self.bias is not None:
            last = some.new_zeros(self.bias.shape) if bias is None else bias
            parts.append(last.reshape(1, block.groups, block.left, 1))
        return torch.cat(parts, -1)[0]

    def oriented(self, site: Site, use: Use) -> Use:
        """Return a layer's use in the orientation of this block."""
        assert site.rule is not None
        return use if site.rule.transposed(site.module) == self.transposed else use.swapped()


def find_blocks(
    weights: Sequence[Weight], sites: Sequence[Site], shared: Sequence[SharedParameter]
) -> list[Filled]:
    """Return the blocks, in the order of the model's parameters.

    Raises:
        CoverageError: If a weight is used by layers whose gradients have different shapes.
    """
    places: dict[Weight, list[Place]] = {}
    for site in sites:
        for path, weight in site.weights.items():
            places.setdefault(weight, []).append((site, path))
    for one in shared:
        places.setdefault(one.weight, []).append((one, one.attribute))
    joined = {site: site.weights["bias"] for site in sites if _joins(site, places)}
    partner = {bias: site.weights["weight"] for site, bias in joined.items()}
    blocks: dict[Weight, Filled] = {}
    for weight in weights:
        matrix = partner.get(weight, weight)
        if matrix in places and matrix not in blocks:
            user = places[matrix][0][0]
            bias = joined.get(user) if isinstance(user, Site) and user.rule else None
            bias = bias if bias is not None and partner[bias] is matrix else None
            blocks[matrix] = _fill(matrix, bias, places[matrix])
    return list(blocks.values())


def _joins(site: Site, places: Mapping[Weight, Sequence[Place]]) -> bool:
    """Return whether a layer's weight and bias can share a block."""
    alone = all(
        len(places[weight]) == 1 and len(weight.tensors) == 1 for weight in site.weights.values()
    )
    return site.rule is not None and set(site.weights) == {"weight", "bias"} and alone


def _fill(matrix: Weight, bias: Weight | None, places: Sequence[Place]) -> Filled:
    orientations = [_orientation(matrix, place) for place in places]
    transposed = all(turned for _, turned in orientations)
    shapes = {
        (groups, right, left) if turned and not transposed else (groups, left, right)
        for (groups, left, right), turned in orientations
    }
    if len(shapes) > 1:
        users = ", ".join(f"{where.label}" for where, _ in places if isinstance(where, Site))
        raise CoverageError(
            f"{matrix.names[0]} is shared by layers whose gradients have different shapes "
            f"({users}); exclude it, or give each kind of layer its own weight"
        )
    groups, left, right = shapes.pop()
    parameters = tuple(matrix.tensors) + (tuple(bias.tensors) if bias else ())
    block = Block(_name(matrix, places), parameters, groups, left, right + (bias is not None))
    return Filled(block, matrix, bias, transposed)


def _orientation(weight: Weight, place: Place) -> tuple[tuple[int, int, int], bool]:
    """Return the shape of the gradient that a place gives, and whether it is transposed."""
    where, path = place
    if isinstance(where, Site) and where.rule is not None and path == "weight":
        return where.rule.shape(where.module), where.rule.transposed(where.module)
    first = weight.shape[0] if weight.shape else 1
    return (1, first, _size(weight.shape) // max(first, 1)), False


def _size(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())


def _name(weight: Weight, places: Sequence[Place]) -> str:
    """Return the layer's name for a layer's weight, else the parameter's."""
    first = weight.names[0]
    owners = [where.name for where, _ in places if isinstance(where, Site) and where.rule]
    layer, _, last = first.rpartition(".")
    return layer if last == "weight" and layer and layer in owners else first


def _arranged(gradient: Tensor, block: Block, transposed: bool) -> Tensor:
    if transposed:
        gradient = gradient.transpose(-1, -2)
    return gradient.reshape(len(gradient), block.groups, block.left, -1)


def _total(weight: Weight | None, gradients: Mapping[str, Tensor | None]) -> Tensor | None:
    """Return the sum over the parameters that share a weight; None if none has a gradient."""
    if weight is None:
        return None
    found = [g for name in weight.tensors if (g := gradients[name]) is not None]
    return functools.reduce(torch.add, found) if found else None
