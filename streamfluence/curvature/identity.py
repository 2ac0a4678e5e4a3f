"""No curvature: scores are inner products of gradients.

The state is the second moment of each feature, which only tells the codec
where the energy of the rows lies.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from streamfluence.curvature.base import Curvature, Factor
from streamfluence.linalg import State, add_states


class Identity(Curvature):
    """H + damping = I; whitening leaves rows as they are."""

    source = "loss"

    def empty(self, widths: Sequence[int]) -> State:
        return {"second_moment": torch.zeros(sum(widths), dtype=torch.float64)}

    def update(self, state: State, rows: Tensor, weight: float = 1.0) -> State:
        moment = (rows.to(torch.float64) ** 2).sum(0)
        return {"second_moment": state["second_moment"].to(rows.device) + weight * moment}

    def merge(self, a: State, b: State) -> State:
        return add_states(a, b)

    def factor(
        self,
        state: State,
        examples: float,
        damping: float | None,
        weights: Sequence[int] | None = None,
    ) -> Factor:
        width = len(state["second_moment"])
        ones = torch.ones(width, dtype=torch.float64)
        return Factor((), ones, torch.zeros_like(ones), ones)

    def energies(self, state: State, factor: Factor, examples: float) -> Tensor:
        return state["second_moment"].cpu() / examples
