"""From the gradients that arrived at recorded calls to the uses of every block."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from streamfluence.capture._blocks import Filled
from streamfluence.capture._explicit import Explicit
from streamfluence.capture._layouts import Layout, Layouts, UnevenCall
from streamfluence.capture._recorder import Call, Recorder
from streamfluence.capture._rule import in_gradient_precision
from streamfluence.capture._sites import Weight
from streamfluence.capture.base import Use
from streamfluence.capture.functional import FallbackFailed


def find_uses(
    recorder: Recorder,
    layouts: Layouts,
    blocks: Sequence[Filled],
    arrived: Sequence[Tensor | None],
) -> dict[str, list[Use]]:
    """Return block name to uses, in the order of the blocks.

    Args:
        recorder: The calls of one forward pass.
        layouts: The example axes of each call.
        blocks: The blocks and the weights in them.
        arrived: The gradient at each output tensor of each call, then at each copied parameter;
                None where what was differentiated does not depend on it.

    Raises:
        UnevenCall: If a module cannot be run again for one example.
    """
    uses: dict[str, list[Use]] = {filled.block.name: [] for filled in blocks}
    for weight, use in _all(recorder, layouts, _by_weight(blocks), iter(arrived)):
        uses[weight.block.name].append(use)
    for filled in blocks:
        if not uses[filled.block.name]:
            uses[filled.block.name].append(_zero(filled, recorder.examples))
    return uses


def dense_uses(
    blocks: Sequence[Filled], rows: Mapping[Weight, Tensor], examples: int
) -> dict[str, list[Use]]:
    """Return per-example gradients by weight, each ``(example, *shape)``, as uses of every block."""
    uses: dict[str, list[Use]] = {}
    for filled in blocks:
        some = [weight for weight in (filled.matrix, filled.bias) if weight in rows]
        uses[filled.block.name] = [
            filled.dense(weight, in_gradient_precision(rows[weight]))
            for weight in some
            if weight is not None
        ] or [_zero(filled, examples)]
    return uses


def _by_weight(blocks: Sequence[Filled]) -> dict[Weight, Filled]:
    found = {filled.matrix: filled for filled in blocks}
    return found | {filled.bias: filled for filled in blocks if filled.bias is not None}


def _all(
    recorder: Recorder,
    layouts: Layouts,
    by_weight: Mapping[Weight, Filled],
    arrived: Iterator[Tensor | None],
) -> Iterator[tuple[Filled, Use]]:
    for call in recorder.calls:
        gradients = [next(arrived) for _ in call.edges]
        if any(gradient is not None for gradient in gradients):
            kind = _of_fallback if call.site.rule is None else _of_layer
            yield from kind(call, gradients, layouts[call.key], by_weight, recorder)
    for shared in recorder.shared:
        gradient = next(arrived)
        if gradient is not None:
            rows = shared.layout.collect(in_gradient_precision(gradient), shared.weight.shape)
            filled = by_weight[shared.weight]
            yield filled, filled.dense(shared.weight, rows)


def _of_layer(
    call: Call,
    gradients: Sequence[Tensor | None],
    layout: Layout,
    by_weight: Mapping[Weight, Filled],
    recorder: Recorder,
) -> Iterator[tuple[Filled, Use]]:
    site, gradient, inputs = call.site, gradients[0], call.inputs[0].detach()
    assert site.rule is not None and gradient is not None
    if call.layout is not None:
        gradient = call.layout.collect(gradient, call.shapes[0])
        inputs = inputs.expand(recorder.examples, *inputs.shape)
    else:
        source, target = layout.inputs[0], layout.outputs[0]
        assert source is not None and target is not None
        inputs = source.split(inputs, recorder.examples)
        gradient = target.split(gradient, recorder.examples)
    for path, weight in site.weights.items():
        filled = by_weight[weight]
        if path == "weight":
            use = site.rule.weight(site.module, inputs, gradient, filled.bias is not None)
            yield filled, filled.oriented(site, use)
        elif filled.matrix is weight:
            yield filled, site.rule.bias(site.module, gradient)


def _of_fallback(
    call: Call,
    gradients: Sequence[Tensor | None],
    layout: Layout,
    by_weight: Mapping[Weight, Filled],
    recorder: Recorder,
) -> Iterator[tuple[Filled, Use]]:
    singles = [
        _single(call, layout, output, gradient, recorder.examples)
        for output, gradient in enumerate(gradients)
    ]
    with recorder.pause():
        try:
            rows = call.site.fallback.gradients(
                call.arguments,
                layout.inputs,
                singles,
                recorder.examples,
                call.settings,
                recorder.rehearsal,
            )
        except FallbackFailed as error:
            raise UnevenCall((call.site,), str(error)) from error
    for path, gradient in rows.items():
        weight = call.site.weights[path]
        yield by_weight[weight], by_weight[weight].dense(weight, in_gradient_precision(gradient))


def _single(
    call: Call, layout: Layout, output: int, gradient: Tensor | None, examples: int
) -> Tensor | None:
    """Return the gradient at one output, one per example, of the shape a batch of one gives."""
    if gradient is None:
        return None
    if call.layout is not None:
        return call.layout.collect(gradient, call.shapes[output])
    axis = layout.outputs[output]
    assert axis is not None
    return axis.singles(gradient, examples)


def _zero(filled: Filled, examples: int) -> Explicit:
    """Return the gradient of a block that nothing depends on; it takes no memory."""
    block, tensor = filled.block, next(iter(filled.matrix.tensors.values()))
    zero = in_gradient_precision(tensor.detach().new_zeros(()))
    return Explicit(zero.expand(examples, block.groups, block.left, block.right))
