"""Pairs of eigenvectors as directions, fitted on probe and loss gradients.

A direction of a block is a pair of eigenvectors of its two moments, or an eigenvector of the
whole covariance where the block is small. The pairs of largest worth over all blocks at
once are kept, so a block's number of features follows from its share of the worth.

What a direction is worth is the energy that whitened rows have in it: that of the loss gradients
over that of the curvature. The curvature alone misleads where the two differ, as in sequences:
there most directions of large curvature are those in which the positions of a row cancel.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from streamfluence.capture.base import Block, Uses
from streamfluence.errors import InputError
from streamfluence.linalg import State
from streamfluence.projections._directions import Directions, trim
from streamfluence.projections._fit import Blocks, candidates, join, mark, shorten, split
from streamfluence.projections._moments import Limits, moments
from streamfluence.projections._random import gaussians
from streamfluence.projections._uses import batch, place
from streamfluence.projections.base import Part, Projection


class Pairs(Projection):
    """Features ``u_s^T G u_a`` of the pairs (u_s, u_a) that hold the most energy E[(u_s^T G u_a)^2].

    The first pass sums moments, and estimates a pair's energy as the product of its two
    eigenvalues, scaled so that the energies of a block add up to the measured mean squared
    norm of its gradient. A second pass measures the energies h of probes and r of loss gradients in
    the ``candidates_per_feature * width`` pairs of largest estimate, and selects those of largest
    r / (h + m), m the mean of h over all weights of the block.

    Args:
        candidates_per_feature: Pairs measured in the second pass, as a multiple of the width.
        dense_limit: Blocks of at most this size use the covariance of the whole gradient.
        side_limit: Sides longer than this use a randomised sketch of their moment.
        rank: Columns of that sketch, and so the most directions of such a side.
        plain: Take the moments of each side alone, E[a a^T] and E[g g^T], as EK-FAC does; by default they
            are weighted by the squared norm of the other side, which holds more energy.

    Source:
        Eigenvector pairs: George et al., Fast Approximate Natural Gradient Descent in a
        Kronecker-factored Eigenbasis, https://arxiv.org/abs/1806.03884 (EK-FAC).
    """

    fitted = True
    passes: tuple[str, ...] = ("curvature", "both")

    def __init__(
        self,
        blocks: Sequence[Block],
        width: int,
        seed: int,
        *,
        candidates_per_feature: int = 8,
        dense_limit: int = 1024,
        side_limit: int = 2048,
        rank: int = 256,
        plain: bool = False,
    ) -> None:
        super().__init__(blocks, width, seed)
        self._count = width * max(1, candidates_per_feature)
        self._limits = Limits(dense_limit, side_limit, rank, plain)
        self._omegas: dict[tuple[int, torch.device], Tensor] = {}
        self._arrays: State = {}
        self._kept: dict[int, Directions] = {}
        self._tried: dict[int, Directions] = {}

    def update(self, state: State, uses: Uses, weight: float) -> State:
        """Return ``state`` plus one batch; its tensors are reused, so do not keep the argument."""
        state = dict(state)
        for number, block in enumerate(self.blocks):
            floats = [use.float() for use in uses.get(block.name, ())]
            sums = moments(block, floats, self._limits, self._omega) if floats else {}
            for key, value in sums.items():
                name = f"{key}/{number}"
                if name in state:
                    state[name] = state[name].to(value.device).add_(value, alpha=weight)
                else:
                    state[name] = value.double().mul_(weight)
        return state

    def merge(self, a: State, b: State) -> State:
        """Return the sum; a block or kind of use may be missing from either part."""
        merged = {**a, **b}
        merged.update({key: a[key] + b[key] for key in a.keys() & b.keys()})
        return {key: merged[key] for key in sorted(merged)}

    def fit(self, state: State, examples: float) -> State:
        """Return the arrays of the candidates, with the best ``width`` of them marked.

        Raises:
            InputError: If no probe gradient was seen, or one was not finite.
        """
        sums = split(state)
        if not sums:
            raise InputError(
                "the projection has seen no probe gradients, so it has no directions; "
                "give the sketch at least one example"
            )
        blocks = {
            n: candidates(self.blocks[n], sums[n], examples, self._count, self._omega) for n in sums
        }
        marked = mark(shorten(blocks, self._count), self.width)
        return join(marked) | {"measured": torch.tensor([0])}

    def load(self, arrays: State) -> None:
        """Make the projection ready to apply what ``fit`` or ``refine`` returned."""
        self._arrays, self._tried, self._kept = dict(arrays), {}, {}
        for number, block in self._candidates().items():
            if block["keep"].any():
                kept = trim(block, block["keep"].bool())
                self._kept[number] = Directions(self.blocks[number], kept)

    def refine_empty(self) -> State:
        """Return the state of the second pass over no examples."""
        count = sum(len(block["energy"]) for block in self._candidates().values())
        return {key: torch.zeros(count, dtype=torch.float64) for key in ("energy", "rows")}

    def refine_update(self, state: State, uses: Uses, weight: float) -> State:
        """Return ``state`` plus the squared features of one batch along every candidate."""
        return self._measured(state, "energy", uses, weight)

    def refine_rows(self, state: State, uses: Uses) -> State:
        """Return ``state`` plus the squared features of loss gradients along every candidate."""
        return self._measured(state, "rows", uses, 1.0)

    def _measured(self, state: State, key: str, uses: Uses, weight: float) -> State:
        if not self._tried:
            self._tried = {n: Directions(self.blocks[n], b) for n, b in self._candidates().items()}
        energy = self._features(self._tried, uses).double().square().sum(0)
        return {**state, key: state[key].to(energy.device) + weight * energy}

    def refine(self, state: State, examples: float, damping: float = 0.0) -> State:
        """Return the arrays for ``load``, selected by the energies measured over ``examples``."""
        blocks, tried = self._blocks(), self._candidates()
        sizes = [len(arrays["energy"]) for arrays in tried.values()]
        pairs = zip(*(state[key].split(sizes) for key in ("energy", "rows")), strict=True)
        for number, (energy, rows) in zip(tried, pairs, strict=True):
            block = blocks[number]
            block["energy"] = energy.to(block["energy"]) / examples
            if state["rows"].any():
                rows = rows.to(block["energy"]) / examples
                damped = block["energy"] + self._mean(number, block)
                block["worth"] = torch.where(damped > 0, rows / damped, 0.0)
        marked = mark(blocks, self.width)
        return join(shorten(marked, self.width)) | {"measured": torch.tensor([1])}

    @property
    def measured(self) -> bool:
        """Whether the second pass has chosen the pairs that are loaded."""
        return bool(self._arrays["measured"])

    @property
    def kept(self) -> int:
        """Number of directions kept."""
        return sum(directions.width for directions in self._kept.values())

    def energies(self) -> tuple[Tensor, Tensor]:
        """Return h and m of every feature, shape ``(feature,)``, float64; for what was refined."""
        blocks = {number: block for number, block in self._blocks().items() if number in self._kept}
        energy = torch.cat([block["energy"] for block in blocks.values()])
        means = [self._mean(n, block).expand_as(block["energy"]) for n, block in blocks.items()]
        return energy, torch.cat(means)

    @property
    def mean(self) -> float:
        """Return the mean curvature over all weights."""
        total = sum(float(block["total"]) for block in self._blocks().values())
        return total / sum(block.size for block in self.blocks)

    def to(self, device: torch.device | str) -> "Pairs":
        """Return the projection with its arrays on ``device``."""
        self._arrays = place(self._arrays, device)
        for directions in [*self._kept.values(), *self._tried.values()]:
            directions.to(device)
        return self

    @property
    def parts(self) -> tuple[Part, ...]:
        """One part per block that has a direction kept."""
        return tuple(Part(self.blocks[n].name, d.width) for n, d in self._kept.items())

    def apply(self, uses: Uses) -> Tensor:
        """Return features, shape ``(example, feature)``, float32."""
        return self._features(self._kept, uses)

    def facts(self) -> dict[str, Any]:
        """Return how the energy of the probe gradients is shared, per block and in all.

        ``energy`` is the mean squared norm of a block's gradient; ``kept`` the part of it in the
        directions kept, ``candidates`` in all that were considered, ``out_of_reach`` the part
        estimated to lie outside the eigenvectors of sketched sides: from above, as a sketch finds
        eigenvalues that are a little too small.
        """
        facts = {self.blocks[n].name: self._facts(n, b) for n, b in self._blocks().items()}
        total = sum(block["energy"] for block in facts.values())
        kept = sum(block["energy"] * block["kept"] for block in facts.values())
        return {
            "energies": "measured" if self.measured else "product",
            "energy": total,
            "kept": kept / total if total > 0 else 0.0,
            "blocks": facts,
        }

    def _mean(self, number: int, arrays: State) -> Tensor:
        return arrays["total"] / self.blocks[number].size

    def _facts(self, number: int, arrays: State) -> dict[str, Any]:
        total = float(arrays["total"])
        kept = float(arrays["energy"][arrays["keep"].bool()].sum()) if "energy" in arrays else 0.0
        tried = float(arrays["tried"]) if "tried" in arrays else 0.0
        directions = self._kept.get(number)
        candidates = tried / total if total > 0 else 0.0
        return {
            "directions": directions.width if directions else 0,
            "rectangle": directions.rectangle if directions else [0, 0],
            "energy": total,
            "kept": kept / total if total > 0 else 0.0,
            "candidates": candidates,
            # What the candidates were measured to hold is within reach.
            "out_of_reach": max(0.0, min(float(arrays["out_of_reach"]), 1 - candidates)),
        }

    def _blocks(self) -> Blocks:
        return split({key: value for key, value in self._arrays.items() if key != "measured"})

    def _candidates(self) -> Blocks:
        """Return the blocks that have a direction."""
        return {number: block for number, block in self._blocks().items() if "places" in block}

    def _features(self, blocks: dict[int, Directions], uses: Uses) -> Tensor:
        examples, device = batch(uses)
        pieces = [torch.zeros(examples, 0, device=device)]
        for directions in blocks.values():
            if block_uses := uses.get(directions.block.name):
                pieces.append(directions.features(block_uses))
            else:
                pieces.append(torch.zeros(examples, directions.width, device=device))
        return torch.cat(pieces, dim=1)

    def _omega(self, side: int, device: torch.device) -> Tensor:
        """Return the random matrix that sketches every side of this length; made on the CPU, and kept."""
        if (side, device) not in self._omegas:
            omega = gaussians(self.seed, torch.arange(side), min(self._limits.rank, side))
            self._omegas[side, device] = omega.to(device)
        return self._omegas[side, device]
