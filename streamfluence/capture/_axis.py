"""Where the examples are in a tensor, found by comparing its shape at two and at three examples.

The axis that scales with the number of examples is the example axis. It may be
folded with other axes (``(example * token, feature)``, example-major): then each
example owns ``rows`` consecutive entries of it.
"""

from dataclasses import dataclass

from torch import Tensor


class IrregularShape(Exception):
    """A shape that neither stays the same nor scales along one axis with the number of examples."""


@dataclass(frozen=True)
class Axis:
    """The example axis of a tensor: its position, and how many entries of it each example owns."""

    index: int
    rows: int

    def split(self, tensor: Tensor, examples: int) -> Tensor:
        """Return ``tensor`` as ``(example, rows, the other axes in order)``, a view if possible."""
        moved = tensor.movedim(self.index, 0)
        return moved.reshape(examples, moved.shape[0] // examples, *moved.shape[1:])

    def singles(self, tensor: Tensor, examples: int) -> Tensor:
        """Return one tensor per example, each of the shape that a batch of one has."""
        return self.split(tensor, examples).movedim(1, self.index + 1)


def find_axis(two: tuple[int, ...], three: tuple[int, ...]) -> Axis | None:
    """Return the example axis, or None for a tensor that does not depend on the batch size.

    Raises:
        IrregularShape: If the shapes differ in any other way.
    """
    if two == three:
        return None
    if len(two) == len(three):
        differ = [
            axis for axis, sizes in enumerate(zip(two, three, strict=True)) if len({*sizes}) == 2
        ]
        if len(differ) == 1 and two[differ[0]] * 3 == three[differ[0]] * 2:
            return Axis(differ[0], two[differ[0]] // 2)
    raise IrregularShape(f"{two} with two examples but {three} with three")
