"""How far Adam's steps reach, weight by weight: root mean squares of gradients, of rank one in a block."""

from collections.abc import Sequence

import torch
from torch import Tensor

from streamfluence.capture import Block, Uses, by_block
from streamfluence.linalg import State, add_states
from streamfluence.projections._norms import squared_norms


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
        """Return the state of no examples: float64 sums, ``left`` and ``right`` flat, all blocks in order."""
        sizes = {
            "norm": len(self._blocks),
            "left": sum(block.groups * block.left for block in self._blocks),
            "right": sum(block.groups * block.right for block in self._blocks),
        }
        return {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}

    def update(self, state: State, uses: Uses) -> State:
        """Return ``state`` plus one batch of loss gradients."""
        pieces: dict[str, list[Tensor]] = {"norm": [], "left": [], "right": []}
        for block in self._blocks:
            floats = [use.float() for use in uses[block.name]]
            pieces["norm"].append(squared_norms(block, floats).sum()[None])
            sides = zip(*(use.side_squares(block) for use in floats), strict=True)
            for name, sums in zip(("left", "right"), sides, strict=True):
                pieces[name].append(torch.stack(sums).sum(0).flatten())
        batch = {name: torch.cat(parts) for name, parts in pieces.items()}
        return add_states({key: value.to(batch[key].device) for key, value in state.items()}, batch)

    def merge(self, a: State, b: State) -> State:
        """Return the state of both parts together."""
        return add_states(a, b)

    def mean_square(self, state: State, examples: float) -> float:
        """Return the mean over examples and weights."""
        return float(state["norm"].sum()) / examples / sum(block.size for block in self._blocks)

    def scales(self, state: State, share: float) -> State:
        """Return the factors of coordinates in which a damping is the same for every weight.

        The damping of a weight over the mean of all is a product of three numbers, of its block, its
        row and its column. Each is ``1 - share`` plus ``share`` times a root mean square over the mean
        of its kind. The factors are the inverse root: ``left``, with the block's, and ``right``, flat
        as in the state, float32.
        """
        sizes = torch.tensor([block.size for block in self._blocks], dtype=torch.float64)
        levels = (state["norm"].cpu() / sizes).sqrt()
        of_blocks = _mixed(levels, (levels * sizes).sum() / sizes.sum(), share)
        sides = by_block(self._blocks, state["left"].cpu().sqrt(), state["right"].cpu().sqrt())
        factors: dict[str, list[Tensor]] = {"left": [], "right": []}
        for of_block, (left, right) in zip(of_blocks, sides.values(), strict=True):
            rows = _mixed(left, left.mean(), share) * of_block
            columns = _mixed(right, right.mean(1, keepdim=True), share)
            factors["left"].append(rows.rsqrt().flatten())
            factors["right"].append(columns.rsqrt().flatten())
        return {name: torch.cat(parts).float() for name, parts in factors.items()}


def _mixed(values: Tensor, mean: Tensor, share: float) -> Tensor:
    """Return ``1 - share + share * values / mean``; 1 where the mean is 0."""
    return torch.where(mean > 0, 1 - share + share * values / mean, 1.0)
