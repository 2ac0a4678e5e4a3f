"""What is measured of each example by the task, seen to be what it is of the example alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from streamfluence.batches import select
from streamfluence.errors import CoverageError, InputError


class Values:
    """Measures batch by batch, and looks at another example of each."""

    def __init__(self) -> None:
        self._turn = 0

    def of(self, measure: Callable[[Any], Tensor], returned: Any) -> Tensor:
        """Return what is measured of each example, after seeing that one of them is what it is alone.

        Args:
            measure: From what forward returns to one number an example.

        Raises:
            CoverageError: If it changes with the others, as a loss that is weighted by its batch does.
        """
        value, self._turn = measure(returned), self._turn + 1
        if isinstance(returned, Tensor):
            return value  # losses themselves, which whoever runs forward looks at
        place = self._turn % len(value)
        try:
            one = select(returned, [place, place])
        except InputError:  # something beside the outputs that has no example axis
            return value
        with torch.no_grad():
            alone = measure(one)[0]
        expected = value[place].detach()
        if not torch.allclose(alone.to(expected), expected, rtol=1e-3, atol=1e-5, equal_nan=True):
            raise CoverageError(
                f"what is measured of an example changes with the others of its batch: "
                f"{float(expected):.6g} among them, {float(alone):.6g} alone. A loss that weights or "
                "normalises by the batch gives no example a gradient of its own; return one loss an "
                "example that depends on its own outputs and targets only"
            )
        return value
