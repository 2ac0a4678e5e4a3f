"""See that what a task's own code measures of an example is a function of that example alone.

A loss is computed from what forward returned, so it is looked at without the model: once more on
halves of the batch, cut so that any two examples are apart in one of them, and on single examples.
Not only its value has to be the same there but its gradient at the outputs, which makes the row.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamfluence.batches import map_arrays, select_of
from streamfluence.capture import Tape
from streamfluence.capture._numbers import largest
from streamfluence.errors import CoverageError

_FIRST_LOOKED = 16  # batches of which many examples are measured alone
_MOST_ALONE = 64  # examples of one of those
_LOOKED_AT = 16  # of so many examples of a later batch one is measured alone
_MOST_RUN = 16  # examples of one of the first batches that forward runs on alone
_RUN_AGAIN = 128  # of so many examples of later batches it runs on one alone
_CLOSE = 1e-5  # relative error up to which two numbers are one; beyond, double precision decides
_LIMITS = {torch.float64: _CLOSE, torch.float32: 2e-3}  # what may be off in such values
_HALF = 0.05  # in values of half precision

_ITS_OWN = (
    "A loss that weights or normalises by the batch, or compares its examples, gives none a gradient "
    "of its own; return one number an example that depends on its own outputs and targets only"
)
_RANDOM = (
    "the loss or measurement is random: it gives other numbers, or other gradients, when the same "
    "examples are measured twice; make forward and it return the same for the same examples"
)

Of = Callable[[Any], Tensor]
Again = Callable[[list[int]], Any]


@dataclass(frozen=True)
class _Found:
    """Values of some examples, ``(example,)``, and their gradients at each output, ``(example, entry)``."""

    values: Tensor
    gradients: Sequence[Tensor]

    @property
    def slope(self) -> Tensor:
        """The norm of each example's gradient."""
        return _norms(self.gradients)

    def at(self, places: Sequence[int]) -> "_Found":
        index = torch.tensor(places, device=self.values.device)
        return _Found(self.values[index], [gradient[index] for gradient in self.gradients])


class OwnValues:
    """Measures one batch after another, and looks closer at the first ones."""

    def __init__(self) -> None:
        self._looked = 0

    def measure(self, of: Of, tape: Tape) -> Tensor:
        """Return ``of`` what forward returned, one number for each example, ``(example,)``.

        Raises:
            CoverageError: If a number or its gradient changes with the other examples, or is random.
        """
        self._looked += 1
        returned, count = tape.returned, tape.examples
        look = _Look(of, returned, count)
        try:
            whole = look.measured()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            of(returned)  # if this fails as well, it says best what is wrong
            raise CoverageError(
                "the loss or measurement can be computed only with the graph that leads from the "
                "model to its outputs, so nothing shows whether it mixes the examples; compute what "
                f"needs the graph in forward, and return it ({error})"
            ) from error
        order = torch.randperm(count, generator=self._random()).tolist()
        some = _MOST_ALONE if self._early else max(1, count // _LOOKED_AT)
        for part in [*_halves(count), *([place, place] for place in order[:some])]:
            if look.differs(part, whole):
                look.judge(part, tape.again)
        value = of(returned)
        if not tape.precision.close(whole.values, value.detach(), largest(value)):
            raise CoverageError(_RANDOM)
        self._refuse_moved(of, tape, value.detach(), order)
        return value

    def _refuse_moved(self, of: Of, tape: Tape, values: Tensor, order: Sequence[int]) -> None:
        """Refuse numbers that change when forward runs on an example alone.

        Code that keeps something of its batch in forward, for the loss to read, shows only here, and
        so does what a loss detaches.
        """
        often = float(torch.rand((), generator=self._random())) < tape.examples / _RUN_AGAIN
        size = largest(values)

        def run(place: int) -> Tensor:
            return of(tape.again([place, place])).detach()[:1]

        for place in order[: _MOST_RUN if self._early else int(often)]:
            alone = run(place)
            if not tape.precision.close(alone, values[place : place + 1], size):
                if not tape.precision.close(run(place), alone, size):
                    raise CoverageError(_RANDOM)
                raise CoverageError(
                    f"what is measured of an example is {float(values[place]):.6g} in its batch, but "
                    f"{float(alone):.6g} where forward runs on it alone: forward and the loss together "
                    f"mix the examples. {_ITS_OWN}"
                )

    @property
    def _early(self) -> bool:
        return self._looked <= _FIRST_LOOKED

    def _random(self) -> torch.Generator:
        return torch.Generator().manual_seed(self._looked)


class _Look:
    """What is measured of parts of one batch."""

    def __init__(self, of: Of, returned: Any, count: int) -> None:
        self._of, self._returned, self._count = of, returned, count
        self._arrays = _arrays(returned)
        self._shared: set[int] = set()  # numbers of the arrays that have no example axis

    def measured(
        self, part: Sequence[int] | None = None, dtype: torch.dtype | None = None
    ) -> _Found:
        """Measure some examples, or all, floating point numbers as ``dtype`` if one is given."""
        roots: list[Tensor] = []
        rows: list[bool] = []  # whether a root has the example axis
        numbers = iter(range(len(self._arrays)))

        def own(array: Any) -> Any:
            number = next(numbers)
            given = self._arrays[number] if number in self._shared else array
            if not isinstance(given, Tensor):
                return given.copy()
            leaf = given.detach()
            leaf = leaf.to(dtype) if dtype and leaf.is_floating_point() else leaf
            if self._arrays[number].requires_grad:
                roots.append(leaf.requires_grad_())
                length = _length(self._arrays[number])
                rows.append(length == self._count and number not in self._shared)
            return leaf.clone()  # the code may change it in place

        some = self._returned
        if part is not None:
            some = select_of(some, part, self._count)
        with torch.enable_grad():
            values = self._of(map_arrays(own, some))
            slopes: Sequence[Tensor] = [torch.zeros_like(root) for root in roots]
            if roots and values.requires_grad:
                slopes = torch.autograd.grad(values.sum(), roots, materialize_grads=True)
        return _Found(
            values.detach(), [_flat(s) for s, own in zip(slopes, rows, strict=True) if own]
        )

    def differs(self, part: Sequence[int], whole: _Found) -> bool:
        """Return whether a part of the batch seems to be measured otherwise on its own."""
        try:
            return _first_off(self.measured(part), whole.at(part), _CLOSE) is not None
        except torch.OutOfMemoryError:
            raise
        except Exception:  # the task's code may raise anything
            return True

    def judge(self, part: Sequence[int], again: Again) -> None:
        """Refuse a part that is measured otherwise on its own, rounding set aside.

        Raises:
            CoverageError: With the cause.
        """
        fault = self._fault(part)
        if fault and (shared := self._without_axis(again)):
            self._shared = shared
            fault = self._fault(part)
        if fault:
            raise CoverageError(fault)

    def _fault(self, part: Sequence[int]) -> str | None:
        """Return what is wrong with a part, as a sentence."""
        for dtype in (torch.float64, None):
            try:
                whole, again = (self.measured(None, dtype).at(part) for _ in range(2))
                limit = _LIMITS.get(whole.values.dtype, _HALF)
                if _first_off(again, whole, limit) is not None:
                    return _RANDOM
                here = self.measured(part, dtype)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # it may not take double precision
                if dtype is not None:
                    continue
                return (
                    "what is measured of an example cannot be measured without the others of its "
                    f"batch: {error}. {_ITS_OWN}"
                )
            if here.values.dtype == dtype or dtype is None:
                place = _first_off(here, whole, limit)
                return None if place is None else _mixed(here.at([place]), whole.at([place]))
        return None

    def _without_axis(self, again: Again) -> set[int]:
        """Return which arrays do not grow with the batch, though they may be as long as it is."""
        others = _arrays(again([*range(self._count), 0]))
        if len(others) != len(self._arrays):
            return set()
        return {number for number, other in enumerate(others) if _length(other) != self._count + 1}


def _halves(count: int) -> Iterator[list[int]]:
    """Yield halves of a batch by every binary digit of the place: any two are apart in one."""
    for digit in range((count - 1).bit_length()):
        for side in (0, 1):
            half = [place for place in range(count) if place >> digit & 1 == side]
            yield half if len(half) > 1 else half * 2


def _first_off(found: _Found, expected: _Found, limit: float) -> int | None:
    """Return the first place at which a value or a gradient is too far off, None if none is."""
    off = _off(found.values - expected.values, found.values, expected.values, limit)
    if found.gradients:
        pairs = zip(found.gradients, expected.gradients, strict=True)
        off |= _off(_norms([a - b for a, b in pairs]), found.slope, expected.slope, limit)
    return int(off.nonzero()[0]) if bool(off.any()) else None


def _off(error: Tensor, found: Tensor, expected: Tensor, limit: float) -> Tensor:
    """Return where numbers are too far off, ``(example,)``; NaN is where it was expected."""
    finite, size = torch.isfinite(expected), expected.double().abs()
    size = torch.where(finite, size, 0.0)
    allowed = limit * (size + 0.01 * size.max())
    return (torch.isfinite(found) != finite) | (finite & (error.double().abs() > allowed))


def _mixed(alone: _Found, among: _Found) -> str:
    """Return what happened to one example, as a sentence."""
    what, numbers = "what is measured of an example", (among.values, alone.values)
    if _off(alone.values - among.values, *numbers, _CLOSE).any():
        change = "changes with the others of its batch"
    else:
        change = (
            "keeps its value, but its gradient at the outputs changes with the others of its batch"
        )
        numbers = (among.slope, alone.slope)
    return (
        f"{what} {change}: {float(numbers[0]):.6g} among them, {float(numbers[1]):.6g} without "
        f"some of them. {_ITS_OWN}"
    )


def _norms(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of all gradients of each example together."""
    norms: Tensor = torch.stack([torch.linalg.vector_norm(g, dim=1) for g in gradients]).norm(dim=0)
    return norms


def _flat(gradient: Tensor) -> Tensor:
    """Return ``(example, entry)``, dense, real and not of half precision."""
    gradient = gradient.to_dense() if gradient.is_sparse else gradient
    real = torch.view_as_real(gradient) if gradient.is_complex() else gradient
    flat = real.reshape(len(real), -1)
    return flat if flat.dtype == torch.float64 else flat.float()


def _length(array: Any) -> int | None:
    return len(array) if array.ndim else None


def _arrays(tree: Any) -> list[Any]:
    """Return the arrays of a tree in the order in which they are mapped."""
    found: list[Any] = []
    map_arrays(found.append, tree)
    return found
