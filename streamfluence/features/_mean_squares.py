"""How far Adam's steps reach, weight by weight: root mean squares of gradients, of rank one in a block."""

from collections.abc import Sequence

import torch
from torch import Tensor

from streamfluence.capture.base import Block, Dense, Indexed, Use, Uses
from streamfluence.linalg import State, add_states
from streamfluence.projections._norms import squared_norms
from streamfluence.projections._uses import as_float


class MeanSquares:
    """Sums of squared entries of loss gradients, over the rows and the columns of every block.

    The sum over a whole block is exact. How it is shared among rows, and among columns, is taken
    from the squares of each position's outer product, as if positions did not correlate.

    Args:
        blocks: The blocks of the model, in order.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._blocks = tuple(blocks)

    def empty(self) -> State:
        """Return the state of no examples (float64 sums)."""
        state: State = {"norm": torch.zeros(len(self._blocks), dtype=torch.float64)}
        for number, block in enumerate(self._blocks):
            for name, side in (("left", block.left), ("right", block.right)):
                state[f"{name}/{number}"] = torch.zeros(block.groups, side, dtype=torch.float64)
        return state

    def update(self, state: State, uses: Uses) -> State:
        """Return ``state`` plus one batch of loss gradients."""
        batch: State = {}
        norms = []
        for number, block in enumerate(self._blocks):
            floats = [as_float(use) for use in uses[block.name]]
            norms.append(squared_norms(block, floats).sum())
            sides = [_side_sums(block, use) for use in floats]
            batch[f"left/{number}"] = torch.stack([left for left, _ in sides]).sum(0)
            batch[f"right/{number}"] = torch.stack([right for _, right in sides]).sum(0)
        batch["norm"] = torch.stack(norms)
        return add_states({key: value.to(batch[key].device) for key, value in state.items()}, batch)

    def merge(self, a: State, b: State) -> State:
        """Return the state of both parts together."""
        return add_states(a, b)

    def mean_square(self, state: State, examples: float) -> float:
        """Return the mean over examples and weights."""
        return float(state["norm"].sum()) / examples / sum(block.size for block in self._blocks)

    def scales(self, state: State, share: float) -> State:
        """Return the factors of coordinates in which a damping is the same for every weight.

        The damping of a weight is ``1 - share`` plus ``share`` times its root mean square, both in
        units of their mean over all weights; and so in turn for its block, its row and its column. The
        factors are its inverse root, ``left/<number>`` and ``right/<number>`` a block, float32.
        """
        sizes = torch.tensor([block.size for block in self._blocks], dtype=torch.float64)
        levels = (state["norm"].cpu() / sizes).sqrt()
        of_blocks = _mixed(levels, (levels * sizes).sum() / sizes.sum(), share)
        found: State = {}
        for number, of_block in enumerate(of_blocks):
            left, right = (state[f"{side}/{number}"].cpu().sqrt() for side in ("left", "right"))
            rows, columns = (
                _mixed(left, left.mean(), share),
                _mixed(right, right.mean(1, keepdim=True), share),
            )
            found[f"left/{number}"] = (rows * of_block).rsqrt().float()
            found[f"right/{number}"] = columns.rsqrt().float()
        return found


def _mixed(values: Tensor, mean: Tensor, share: float) -> Tensor:
    """Return ``1 - share + share * values / mean``; 1 where the mean is 0."""
    return torch.where(mean > 0, 1 - share + share * values / mean, 1.0)


def _side_sums(block: Block, use: Use) -> tuple[Tensor, Tensor]:
    """Return sums of squares over examples and the other side, ``(group, left)``, ``(group, right)``."""
    if isinstance(use, Dense):
        squares = use.gradient.square()
        return squares.sum((0, 3), dtype=torch.float64), squares.sum((0, 2), dtype=torch.float64)
    if isinstance(use, Indexed):
        squares = use.right.square()
        left = squares.new_zeros(1, block.left, dtype=torch.float64)
        left.index_add_(1, use.index.flatten(), squares.sum(2).flatten()[None].double())
        return left, squares.sum((0, 1), dtype=torch.float64)[None]
    left, right = use.left.square(), use.right.square()
    rows, columns = left * right.sum(3, keepdim=True), right * left.sum(3, keepdim=True)
    return rows.sum((0, 2), dtype=torch.float64), columns.sum((0, 2), dtype=torch.float64)
