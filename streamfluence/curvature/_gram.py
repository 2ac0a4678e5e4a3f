"""The one state every Gram-type curvature shares: float64 sums of outer products, block by block."""

from collections.abc import Sequence

import torch
from torch import Tensor

from streamfluence.curvature.base import Curvature, Factor
from streamfluence.errors import InputError
from streamfluence.linalg import State, add_states, symmetric_eigen


class Gram(Curvature):
    """H = (1/n) sum of row row^T in each block, whatever the rows are."""

    def empty(self, widths: Sequence[int]) -> State:
        return {
            f"gram/{i}": torch.zeros(width, width, dtype=torch.float64)
            for i, width in enumerate(widths)
        }

    def update(self, state: State, rows: Tensor, weight: float = 1.0) -> State:
        updated, start = {}, 0
        for key, gram in state.items():
            # float64 products: the small eigenvalues are what damping is compared with.
            block = rows[:, start : start + len(gram)].to(torch.float64)
            updated[key] = gram.to(rows.device) + weight * (block.T @ block)
            start += len(gram)
        assert start == rows.shape[1], f"{rows.shape[1]} features for blocks of {start}"
        return updated

    def merge(self, a: State, b: State) -> State:
        return add_states(a, b)

    def factor(
        self,
        state: State,
        examples: float,
        damping: float | None,
        weights: Sequence[int] | None = None,
    ) -> Factor:
        values, vectors, dampings = [], [], []
        for gram, size in zip(state.values(), weights or map(len, state.values()), strict=True):
            spectrum, basis = symmetric_eigen(gram / examples)
            values.append(spectrum)
            vectors.append(basis)
            block_damping = self._default(spectrum, size) if damping is None else damping
            dampings.append(torch.full_like(spectrum, block_damping))
        spectrum = torch.cat(values)
        return Factor(tuple(vectors), spectrum, torch.cat(dampings), torch.ones_like(spectrum))

    def _default(self, spectrum: Tensor, size: int) -> float:
        chosen = self.default_scale * float(spectrum.sum()) / size
        if chosen <= 0:
            raise InputError(
                "a block of the curvature is zero on the whole sample, so no damping can be derived "
                "from it; set curvature.damping, or exclude the parameters that get no gradient"
            )
        return chosen
