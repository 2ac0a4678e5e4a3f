"""The directions kept in one block, as arrays that are stored and as a map from uses to features.

The arrays of a block are ``places`` ``(direction, 3)`` (group, left direction, right
direction), ``energy`` and perhaps ``worth``, both ``(direction,)``, and either ``whole``
``(size, direction)``, or ``right`` ``(group, right, column)`` with ``left`` ``(group, left, row)``
or ``rows`` ``(row,)``, the gradient rows that are left directions by themselves.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from streamfluence.capture.base import Block, Use, dense_gradient
from streamfluence.linalg import State
from streamfluence.projections._uses import place

# A gathered pair costs this many times a pair of the whole rectangle, which is a matrix product:
# on a GPU a gather is bound by memory, and a product is far from it.
_GATHER_COST = {"cpu": 16, "cuda": 512}


class Directions:
    """Features of one block: the gradient along each of its directions.

    Args:
        block: The block.
        arrays: Its arrays, as above.
    """

    def __init__(self, block: Block, arrays: State) -> None:
        self.block, self._arrays = block, dict(arrays)
        self.width = len(arrays["places"])
        if "whole" in arrays:
            return
        rows, columns = self.rectangle
        group, row, column = arrays["places"].T.contiguous()
        self._arrays.update(group=group, row=row, column=column)
        self._arrays["flat"] = (group * rows + row) * columns + column
        if "rows" in arrays:
            slot = torch.full((block.left,), rows, dtype=torch.int64, device=group.device)
            slot[arrays["rows"]] = torch.arange(rows, device=group.device)
            self._arrays["slot"] = slot

    @property
    def rectangle(self) -> list[int]:
        """Number of left and of right vectors whose pairs are computed or gathered."""
        if "whole" in self._arrays:
            return [1, self.width]
        rows = (
            self._arrays["rows"].shape[0]
            if "rows" in self._arrays
            else self._arrays["left"].shape[2]
        )
        return [rows, self._arrays["right"].shape[2]]

    def to(self, device: torch.device | str) -> "Directions":
        """Return the directions with their arrays on ``device``."""
        self._arrays = place(self._arrays, device)
        return self

    def features(self, uses: Sequence[Use]) -> Tensor:
        """Return the features of every example, shape ``(example, direction)``, float32."""
        if "whole" in self._arrays:
            floats = [use.float() for use in uses]
            return dense_gradient(self.block, floats).flatten(1) @ self._arrays["whole"]
        first, *more = (self._features(use.float_on_demand()) for use in uses)
        return sum(more, first)

    def _features(self, use: Use) -> Tensor:
        arrays = self._arrays
        if "rows" in arrays:
            rectangle = use.rows_times(arrays["rows"], arrays["slot"], arrays["right"])
            return rectangle.flatten(1).index_select(1, arrays["flat"])
        bases = arrays["left"], arrays["right"]
        if self._gathered(arrays["flat"].device):
            pairs = use.gathered(bases, arrays["group"], arrays["row"], arrays["column"])
            if pairs is not None:
                return pairs
        return use.between(*bases).flatten(1).index_select(1, arrays["flat"])

    def _gathered(self, device: torch.device) -> bool:
        """Return whether the pairs are gathered, instead of taken from the whole rectangle."""
        rows, columns = self.rectangle
        whole = len(self._arrays["right"]) * rows * columns
        return _GATHER_COST[device.type] * self.width < whole


def trim(arrays: State, keep: Tensor) -> State:
    """Return a block's arrays with only the directions where ``keep``, and only the vectors they need."""
    places = arrays["places"][keep]
    kept: State = {key: arrays[key][keep] for key in ("energy", "worth", "keep") if key in arrays}
    if "whole" in arrays:
        whole = arrays["whole"][:, places[:, 2]].contiguous()
        places = torch.stack([places[:, 0], places[:, 1], torch.arange(len(places)).to(places)], 1)
        return {**kept, "places": places, "whole": whole}
    rows, row = places[:, 1].unique(return_inverse=True)
    columns, column = places[:, 2].unique(return_inverse=True)
    kept["places"] = torch.stack([places[:, 0], row, column], dim=1)
    kept["right"] = arrays["right"][..., columns].contiguous()
    if "rows" in arrays:
        return {**kept, "rows": arrays["rows"][rows]}
    return {**kept, "left": arrays["left"][..., rows].contiguous()}
