"""Contract of a projection: a linear map from an example's gradient to a short feature vector.

Laws: linear; same seed, same features on any device and in any batch split;
where ``unbiased`` is claimed, E<Px, Py> = <x, y> over seeds for every block shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamfluence.capture.base import Block, Uses
from streamfluence.linalg import State


@dataclass(frozen=True)
class Part:
    """A run of consecutive features that belong together: one layer, or everything."""

    name: str
    width: int


class Projection:
    """Base of every projection.

    Life: ``__init__`` -> (fitted members only: ``empty``, ``update`` per batch, ``merge``,
    ``fit``) -> ``load`` with what ``fit`` returned -> ``parts``, ``apply``.
    Members that are not fitted are ready after ``__init__``.

    A member of more than one pass over the sample is fitted further in each after the first:
    ``load`` with what the last pass returned -> ``refine_empty``, ``refine_update`` and
    ``refine_rows`` per batch, ``merge``, ``refine`` -> ``load`` with what ``refine`` returned.

    Args:
        blocks: The blocks of the model, in order.
        width: Number of features wanted over all blocks; fewer when the model has fewer parameters.
        seed: Decides every random choice.

    Attributes:
        passes: What each pass over the sample shows: the vectors of the ``curvature``, the loss
            gradients that ``rows`` are made of, or ``both``.
        most_rows: Loss gradients that a pass over ``rows`` alone is shown at most; None means all.
        damped: Whether the last ``refine`` looks at the damping.
    """

    fitted = False
    unbiased = False
    passes: tuple[str, ...] = ("curvature",)
    most_rows: int | None = None
    damped = False

    def __init__(self, blocks: Sequence[Block], width: int, seed: int) -> None:
        self.blocks, self.width, self.seed = tuple(blocks), width, seed

    def empty(self) -> State:
        """Return the state of no examples (float64 sums)."""
        return {}

    def update(self, state: State, uses: Uses, weight: float) -> State:
        """Return ``state`` plus one batch of probe gradients, each counted ``weight`` times."""
        return state

    def merge(self, a: State, b: State) -> State:
        """Return the state of both parts together."""
        return {}

    def fit(self, state: State, examples: float) -> State:
        """Return the arrays that ``load`` needs, from a state summed over ``examples`` examples."""
        return {}

    def load(self, arrays: State) -> None:
        """Make the projection ready to apply."""

    def refine_empty(self) -> State:
        """Return the state of the next pass over no examples (sums)."""
        return {}

    def refine_update(self, state: State, uses: Uses, weight: float) -> State:
        """Return ``state`` plus one batch of the curvature's vectors, each counted ``weight`` times."""
        return state

    def refine_rows(self, state: State, uses: Uses) -> State:
        """Return ``state`` plus one batch of loss gradients, which are what rows will be made of."""
        return state

    def refine(self, state: State, examples: float, damping: float = 0.0) -> State:
        """Return the arrays that ``load`` needs, from a later pass summed over ``examples``.

        Args:
            damping: What will be added to the curvature, as far as it is known before the features are; 0
                where it is a multiple of their spectrum.
        """
        return {}

    def to(self, device: torch.device | str) -> "Projection":
        """Return the projection with its arrays on ``device``."""
        return self

    @property
    def parts(self) -> tuple[Part, ...]:
        """The features in order, cut into parts; widths sum to the row width."""
        raise NotImplementedError

    def apply(self, uses: Uses) -> Tensor:
        """Return features, shape ``(example, feature)``, float32."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Return what a record should say of the fit (JSON-able), e.g. the share of energy kept."""
        return {}
