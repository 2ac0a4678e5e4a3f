"""From summed moments to the candidate directions of each block, and which of them to keep.

Flat states name a block's tensors ``key/number``; here a block's tensors are a dictionary of
their own, with the arrays of ``_directions`` and these scalars: ``total``, the mean squared norm
of the block's gradient; ``tried``, the energy of its candidates; ``out_of_reach``, the share of
energy estimated to lie outside the eigenvectors of sketched sides.
"""

import torch
from torch import Tensor

from streamfluence.capture.base import Block
from streamfluence.errors import InputError
from streamfluence.linalg import State, symmetric_eigen
from streamfluence.projections._directions import trim
from streamfluence.projections._eigen import Side, of_diagonal, of_matrix, of_sketch
from streamfluence.projections._moments import Omega
from streamfluence.projections._selection import keep_largest, pair_energies

Blocks = dict[int, State]
_FACTS = ("total", "tried", "out_of_reach")


def split(state: State) -> Blocks:
    """Return the tensors of each block, in the order of the blocks."""
    blocks: Blocks = {}
    for key, value in state.items():
        name, _, number = key.rpartition("/")
        blocks.setdefault(int(number), {})[name] = value
    return {number: blocks[number] for number in sorted(blocks)}


def join(blocks: Blocks) -> State:
    """Return the flat state of all blocks."""
    return {
        f"{name}/{number}": value
        for number, tensors in blocks.items()
        for name, value in tensors.items()
    }


def candidates(block: Block, sums: State, examples: float, count: int, omega: Omega) -> State:
    """Return the arrays of every direction of a block that can be among the ``count`` best.

    Args:
        block: The block.
        sums: Its moments, summed over ``examples`` examples.
        examples: A number, not necessarily whole when examples are weighted.
        count: Candidates wanted over all blocks.
        omega: Gives the random matrix that the sketches were made with.

    Raises:
        InputError: If a moment is not finite.
    """
    if not all(value.isfinite().all() for value in sums.values()):
        raise InputError(
            f"the probe gradients of block {block.name!r} are not finite, so no directions can be "
            "fitted; leave the examples out that make them so, or compute in float32"
        )
    arrays = _whole(sums, examples) if "whole" in sums else _pairs(sums, examples, count, omega)
    return {**arrays, **trim(arrays, keep_largest([arrays["energy"]], count)[0])}


def mark(blocks: Blocks, width: int) -> Blocks:
    """Return the blocks with ``keep`` 1 at the ``width`` best directions of all, and ``tried`` set."""
    marked = {number: dict(arrays) for number, arrays in blocks.items()}
    for number, mask in _best(blocks, width).items():
        energy = blocks[number]["energy"]
        marked[number].update(keep=mask.to(torch.uint8), tried=energy.sum()[None])
    return marked


def shorten(blocks: Blocks, width: int) -> Blocks:
    """Return the blocks with only the ``width`` best directions of all; a block may keep none."""
    short = {n: {key: a[key] for key in _FACTS if key in a} for n, a in blocks.items()}
    for number, mask in _best(blocks, width).items():
        if mask.any():
            short[number].update(trim(blocks[number], mask))
    return short


def _best(blocks: Blocks, width: int) -> dict[int, Tensor]:
    worth = {n: a.get("worth", a["energy"]) for n, a in blocks.items() if "energy" in a}
    return dict(zip(worth, keep_largest(list(worth.values()), width), strict=True))


def _whole(sums: State, examples: float) -> State:
    values, vectors = symmetric_eigen(sums["whole"] / examples)
    number = torch.arange(len(values)).to(values.device)
    return {
        "places": torch.stack([torch.zeros_like(number), torch.zeros_like(number), number], dim=1),
        "energy": values,
        "whole": vectors.float(),
        "total": sums["whole"].trace()[None] / examples,
        "out_of_reach": torch.zeros_like(values[:1]),
    }


def _pairs(sums: State, examples: float, count: int, omega: Omega) -> State:
    left, right = _side("left", sums, omega), _side("right", sums, omega)
    # The traces of both moments, which are one number unless they are plain.
    squared = sums["trace"] * sums.get("trace_right", sums["trace"])
    scale = torch.where(squared > 0, sums["norm"] / squared / examples, 0.0)
    total = sums["norm"].sum()[None] / examples
    reached = (scale * left.values.sum(1) * right.values.sum(1)).sum()
    energy, places = pair_energies(left.values, right.values, scale, count)
    return {
        "places": places,
        "energy": energy,
        "total": total,
        "out_of_reach": torch.where(total > 0, 1 - reached / total, 0.0).clamp_min(0.0),
        "right": right.vectors,
        ("rows" if left.vectors.dim() == 1 else "left"): left.vectors,
    }


def _side(name: str, sums: State, omega: Omega) -> Side:
    """Return the eigenpairs of one side from whichever sums its uses left."""
    diagonal = sums.get("left_diagonal") if name == "left" else None
    if f"{name}_sketch" in sums:
        sketch = sums[f"{name}_sketch"]
        random = omega(sketch.shape[1], sketch.device).double()
        return of_sketch(
            sketch if diagonal is None else sketch + diagonal[:, None] * random, random
        )
    if name in sums:
        return of_matrix(sums[name] if diagonal is None else sums[name] + diagonal.diag())
    return of_diagonal(sums["left_diagonal"])
