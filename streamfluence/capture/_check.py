"""Prove, on one batch, that the captured gradients are the model's per-example gradients.

Two independent facts together prove it: the rows add up to autograd's gradient of the
batch, for every parameter; and the rows of two examples are the same without the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from streamfluence.capture._blocks import Filled
from streamfluence.capture._sites import Weight, shortened
from streamfluence.capture.base import Dense, Indexed, Outer, Use, dense_gradient
from streamfluence.errors import CoverageError

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
_TF32 = 0.02
# Below this share of the whole gradient a block is rounding: attention's key bias is 0 in truth.
_FLOOR = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def check_sums(
    blocks: Sequence[Filled],
    weights: Sequence[Weight],
    uses: Mapping[str, Sequence[Use]],
    gradients: Mapping[str, Tensor | None],
) -> None:
    """Refuse parameters whose per-example gradients do not add up to ``gradients``.

    Args:
        blocks: The captured blocks.
        weights: Every weight that has to be captured.
        uses: Of one batch.
        gradients: Autograd's gradient of the summed loss, by parameter name.

    Raises:
        CoverageError: It names the parameters, the error and what to do.
    """
    floor = _norm([g for g in gradients.values() if g is not None])
    _refuse_uncovered(blocks, weights, gradients)
    for filled in blocks:
        found, expected = _sum(filled, uses[filled.block.name]), filled.gathered(gradients)
        expected = torch.zeros_like(found) if expected is None else expected.to(found.dtype)
        error, scale = _norm([found - expected]), _norm([expected])
        if not error <= _allowed(filled, scale, floor):
            raise CoverageError(
                f"{shortened(filled.block.parameters)}: the per-example gradients do not add up to "
                f"autograd's gradient (error {error:.2g}, its norm {scale:.2g}). Probably the "
                "weight is also used outside its module's call, as in F.linear(x, layer.weight), "
                f"or a hook changes gradients; call the module, or exclude "
                f"{shortened(filled.block.parameters)}"
            )


def check_rows(
    blocks: Sequence[Filled],
    uses: Mapping[str, Sequence[Use]],
    alone: Mapping[str, Sequence[Use]],
    pairs: Sequence[tuple[int, int]],
) -> None:
    """Refuse blocks in which an example's gradient depends on the rest of its batch.

    Args:
        blocks: The captured blocks.
        uses: Of the batch.
        alone: Of a smaller batch with some of its examples.
        pairs: ``(position in the batch, position in the smaller batch)`` of an example.

    Raises:
        CoverageError: It names the parameters, the error and what to do.
    """
    for together, apart in pairs:
        expected = {f.block.name: _row(f, alone[f.block.name], apart) for f in blocks}
        floor = _norm(list(expected.values()))
        for filled in blocks:
            one = expected[filled.block.name]
            error = _norm([_row(filled, uses[filled.block.name], together) - one])
            if not error <= _allowed(filled, _norm([one]), floor):
                raise CoverageError(
                    f"{shortened(filled.block.parameters)}: the gradient of example {together} "
                    f"changes with the other examples of its batch (difference {error:.2g}, norm "
                    f"{_norm([one]):.2g}). Either the model mixes examples, or it folds them into "
                    "an axis that is not example-major; put the example axis first, or exclude "
                    f"{shortened(filled.block.parameters)}"
                )


def compared(examples: int) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Return small batches, as examples of the whole one, and the pairs of positions to compare."""
    last = examples - 1
    if examples > 2:
        return [([0, last], [(0, 0), (last, 1)])]
    if examples == 2:
        return [([0], [(0, 0)]), ([1], [(1, 0)])]
    return [([0, 0], [(0, 0), (0, 1)])]


def _refuse_uncovered(
    blocks: Sequence[Filled],
    weights: Sequence[Weight],
    gradients: Mapping[str, Tensor | None],
) -> None:
    covered = {name for filled in blocks for name in filled.block.parameters}
    for weight in weights:
        for name in weight.tensors:
            gradient = gradients[name]
            if name not in covered and gradient is not None and bool(gradient.any()):
                raise CoverageError(
                    f"{name} has a gradient, but its module was never called, so it has none per "
                    f"example; call the module in forward, or exclude {name}"
                )


def _allowed(filled: Filled, scale: float, whole: float) -> float:
    dtypes = {tensor.dtype for tensor in filled.matrix.tensors.values()}
    dtype = max(dtypes, key=lambda kind: torch.finfo(kind).eps)
    # cuDNN's convolutions are TF32 unless the user says otherwise: 11 bits, in every layer.
    cuda = any(tensor.is_cuda for tensor in filled.matrix.tensors.values())
    tolerance = _TF32 if cuda and dtype == torch.float32 else _TOLERANCE[dtype]
    return tolerance * scale + _FLOOR[dtype] * whole


def _sum(filled: Filled, uses: Sequence[Use]) -> Tensor:
    """Return the sum over examples, ``(group, left, right)``, without a row for each."""
    total: Tensor | None = None
    for use in uses:
        part = _sum_of(filled, use)
        total = part if total is None else total + part
    assert total is not None
    return total


def _sum_of(filled: Filled, use: Use) -> Tensor:
    if isinstance(use, Dense):
        return use.gradient.sum(0)
    if isinstance(use, Indexed):
        total = use.right.new_zeros(filled.block.left, filled.block.right)
        return total.index_add_(0, use.index.flatten(), use.right.flatten(0, 1))[None]
    left, right = (side.transpose(0, 1).flatten(1, 2) for side in (use.left, use.right))
    return left.transpose(1, 2) @ right


def _row(filled: Filled, uses: Sequence[Use], example: int) -> Tensor:
    """Return one example's gradient."""
    return dense_gradient(filled.block, [_slice(use, example) for use in uses])[0]


def _slice(use: Use, example: int) -> Use:
    part = slice(example, example + 1)
    if isinstance(use, Dense):
        return Dense(use.gradient[part])
    if isinstance(use, Indexed):
        return replace(use, index=use.index[part], right=use.right[part])
    return Outer(use.left[part], use.right[part])


def _norm(tensors: Sequence[Tensor]) -> float:
    squares = [float(tensor.double().square().sum()) for tensor in tensors]
    return sum(squares) ** 0.5
