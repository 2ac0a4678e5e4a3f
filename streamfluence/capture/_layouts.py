"""The example axes of a call's tensors, from the same call with two and with three examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamfluence.capture._axis import Axis, IrregularShape, find_axis
from streamfluence.capture._recorder import Call
from streamfluence.capture._sites import Site


@dataclass(frozen=True)
class Layout:
    """The example axis of each input and output tensor of a call; None for one without."""

    inputs: tuple[Axis | None, ...]
    outputs: tuple[Axis | None, ...]

    @property
    def independent(self) -> bool:
        """Whether the call does not depend on the batch."""
        return not any(self.inputs) and not any(self.outputs)


class UnevenCall(Exception):
    """Layers whose gradient cannot be told apart by example; that of the modules around them may be.

    Args:
        sites: The layers; none where no module at all has to do with it.
        message: What is uneven, as a sentence.
        neighbours: Whether other layers in the same containers share the cause.
    """

    def __init__(self, sites: tuple[Site, ...], message: str, neighbours: bool = False) -> None:
        super().__init__(message)
        self.sites, self.neighbours = sites, neighbours


Layouts = Mapping[tuple[str, int], Layout]


def find_layouts(two: Sequence[Call], three: Sequence[Call]) -> Layouts:
    """Return the layout of each call.

    Raises:
        UnevenCall: If a site is called another number of times, sees a tensor whose shape
            does not scale, or mixes the axis of the examples.
    """
    _refuse_uneven(two, three)
    others = {call.key: call for call in three}
    layouts = {call.key: _layout(call, others[call.key]) for call in two}
    for call in two:
        if call.site.rule is not None and not layouts[call.key].independent:
            _refuse_mixing(call, layouts[call.key])
    return layouts


def find_unforeseen(calls: Sequence[Call], layouts: Layouts, examples: int) -> UnevenCall | None:
    """Return what is wrong with the first call that the layouts do not describe, if there is one."""
    for call in calls:
        layout = layouts.get(call.key)
        if layout is None or not _fits(call, layout, examples):
            return UnevenCall(
                (call.site,),
                f"call {call.number + 1} of {call.site.label} was not there when the capture was "
                "foreseen, or had other shapes, although the batch looks the same: its work depends "
                "on the values, as in routed experts",
                neighbours=True,
            )
    return None


def _fits(call: Call, layout: Layout, examples: int) -> bool:
    tensors = [tuple(tensor.shape) for tensor in call.inputs] + call.shapes
    axes = (*layout.inputs, *layout.outputs)
    return len(tensors) == len(axes) and all(
        axis is None or (len(shape) > axis.index and shape[axis.index] == examples * axis.rows)
        for shape, axis in zip(tensors, axes, strict=True)
    )


def _layout(two: Call, three: Call) -> Layout:
    try:
        return Layout(
            _axes([tuple(t.shape) for t in two.inputs], [tuple(t.shape) for t in three.inputs]),
            _axes(two.shapes, three.shapes),
        )
    except IrregularShape as error:
        raise UnevenCall(
            (two.site,),
            f"{two.site.label} sees {error}: no axis grows with the number of examples, as in "
            "routed experts, so its gradient cannot be told apart by example",
            neighbours=True,
        ) from None


def _axes(
    two: Sequence[tuple[Any, ...]], three: Sequence[tuple[Any, ...]]
) -> tuple[Axis | None, ...]:
    if len(two) != len(three):
        raise IrregularShape(f"{len(two)} tensors with two examples but {len(three)} with three")
    return tuple(find_axis(a, b) for a, b in zip(two, three, strict=True))


def _refuse_uneven(two: Sequence[Call], three: Sequence[Call]) -> None:
    sites = {call.site.name: call.site for call in (*two, *three)}
    for name, site in sites.items():
        counts = [sum(call.site.name == name for call in calls) for calls in (two, three)]
        if counts[0] != counts[1]:
            raise UnevenCall(
                (site,),
                f"{site.label} is called {counts[0]} times with two examples but {counts[1]} "
                "times with three, so its calls cannot be told apart by example",
                neighbours=True,
            )


def _refuse_mixing(call: Call, layout: Layout) -> None:
    """Refuse a layer whose example axis is one that it sums over, or moves."""
    assert call.site.rule is not None
    axes = {*layout.inputs, *layout.outputs}
    allowed = call.site.rule.axes(call.site.module, call.inputs[0].ndim)
    axis = axes.pop()
    if axes or axis is None or axis.index not in allowed:
        raise UnevenCall(
            (call.site,),
            f"{call.site.label} maps {tuple(call.inputs[0].shape)} to {call.shapes[0]} with two "
            "examples: the axis of the examples is one that the layer mixes",
        )
