"""A whole model and its derivatives along vectors: gradients, and Gauss-Newton as a product with vectors.

H v = (1/n) sum_i J_i^T S_i J_i v: forward mode gives J v, one derivative of the
loss gradient in the outputs gives S J v, a backward pass gives the rest. Nothing
is projected and nothing of the size of H exists.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from streamfluence.batches import example_count, in_company
from streamfluence.errors import InputError

with warnings.catch_warnings():
    # Forward mode imports this on first use, and it calls torch's own deprecated torch.jit.script.
    warnings.simplefilter("ignore", DeprecationWarning)
    import_module("torch._decomp.decompositions_for_jvp")

AT_ONCE = 8  # vectors pushed through the model together: their activations are held at once

Forward = Callable[[torch.nn.Module, Any], tuple[Any, ...]]
Loss = Callable[[tuple[Any, ...]], Tensor]


class Linearised:
    """A model and its derivatives at its weights, along vectors over some of its parameters.

    A vector is flat, shape ``(parameter,)``: the parameters in the order of ``names``.

    Args:
        model: In eval mode.
        forward: ``forward(model, batch)`` returns ``(outputs, targets, ...)``.
        loss: From what forward returned to one loss an example; twice differentiable.
        names: Parameters that move, by their first name in the model.
    """

    def __init__(
        self, model: torch.nn.Module, forward: Forward, loss: Loss, names: Sequence[str]
    ) -> None:
        self._run, self._loss = _Run(model, forward), loss
        self._at_once, self._forward_mode = True, True
        own = dict(model.named_parameters())
        self._weights = {f"model.{name}": own[name].detach() for name in names}
        self._fixed = {
            f"model.{name}": tensor.detach() for name, tensor in own.items() if name not in names
        }
        self.sizes = {name: own[name].numel() for name in names}

    def gradients(self, batch: Any, measure: Loss) -> Tensor:
        """Return the gradient of each example's measurement, ``(example, parameter)``."""
        return torch.stack(list(self._gradients(batch, measure)))

    def slopes(self, batch: Any, vectors: Tensor, measure: Loss | None = None) -> Tensor:
        """Return the gradient of each example's loss, or other measure, times each row of ``vectors``.

        Returns:
            Shape ``(vector, example)``.
        """
        given, (batch, count) = batch, self._company(batch)

        def losses(weights: dict[str, Tensor]) -> Tensor:
            return (measure or self._loss)(self._returned(weights, batch))[:count]

        if self._forward_mode:
            try:
                return self._each(lambda vector: self._push(losses, vector), vectors)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # no forward mode; a real failure comes again below
                self._forward_mode = False
        rows = self._gradients(given, measure or self._loss)
        return torch.stack([vectors @ row for row in rows], dim=1)

    def outer_products(self, batch: Any, vectors: Tensor, measure: Loss) -> Tensor:
        """Return ``sum_i g_i <g_i, v>`` over the batch for each row v of ``vectors``."""
        slopes = self.slopes(batch, vectors, measure)
        weights, (batch, count) = self._moving(), self._company(batch)
        values = measure(self._returned(weights, batch))[:count]
        return self._each(lambda slope: self._pulled(values, weights, slope), slopes)

    def measured(self, batch: Any, measure: Loss) -> Tensor:
        """Return the measurement of each example, ``(example,)``."""
        batch, count = self._company(batch)
        return measure(self._returned(self._weights, batch))[:count].detach()

    def products(self, batch: Any, vectors: Tensor) -> Tensor:
        """Return ``sum_i J_i^T S_i J_i v`` over the batch for each row v of ``vectors``."""
        weights, (batch, count) = self._moving(), self._company(batch)
        outputs, *rest = self._returned(weights, batch)

        def slope(at: Tensor) -> Tensor:
            found: Tensor = grad(lambda o: self._loss((o, *rest))[:count].sum())(at)
            return found

        def curved(vector: Tensor) -> Tensor:
            moved = self._push(lambda w: self._returned(w, batch)[0], vector)
            found: Tensor = jvp(slope, (outputs.detach(),), (moved,))[1]
            return found

        moved = self._each(curved, vectors)
        return self._each(lambda cotangent: self._pulled(outputs, weights, cotangent), moved)

    def _gradients(self, batch: Any, measure: Loss) -> Iterator[Tensor]:
        """Yield the gradient of each example's measurement, ``(parameter,)``."""
        weights, (batch, count) = self._moving(), self._company(batch)
        for value in measure(self._returned(weights, batch))[:count]:
            yield self._pulled(value, weights, torch.ones_like(value))

    def _pulled(self, of: Tensor, weights: dict[str, Tensor], cotangent: Tensor) -> Tensor:
        """Return the derivative of ``of`` in the weights, times a cotangent; what was not used has zero."""
        leaves = list(weights.values())
        found = torch.autograd.grad(of, leaves, cotangent, retain_graph=True, allow_unused=True)
        return self._flat(found)

    def _company(self, batch: Any) -> tuple[Any, int]:
        """Return the batch, or two copies of one example that forward squeezes, and how many count."""
        count = example_count(batch)

        def run(given: Any) -> Any:
            returned = self._returned(self._weights, given)
            leading = returned if isinstance(returned, Tensor) else returned[0]
            if leading.shape[:1] != (example_count(given),):
                raise InputError("forward returns no example axis")
            self._loss(returned)
            return given

        return (batch if count > 1 else in_company(run, batch, count)), count

    def _each(self, function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """Return ``function`` of every row, several at once where the model allows it."""
        if self._at_once:
            try:
                return vmap(function, chunk_size=AT_ONCE)(rows)
            except Exception:  # whatever vmap cannot do; a real failure comes again below
                self._at_once = False
        return torch.stack([function(row) for row in rows])

    def _push(self, function: Callable[[dict[str, Tensor]], Tensor], vector: Tensor) -> Tensor:
        pieces = vector.split(list(self.sizes.values()))
        tangents = {
            name: piece.view_as(weight)
            for (name, weight), piece in zip(self._weights.items(), pieces, strict=True)
        }
        moved: Tensor = jvp(function, (self._weights,), (tangents,))[1]
        return moved

    def _returned(self, weights: dict[str, Tensor], batch: Any) -> tuple[Any, ...]:
        # The fused attention kernels have no forward mode and no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            returned: tuple[Any, ...] = functional_call(self._run, self._fixed | weights, (batch,))
            return returned

    def _moving(self) -> dict[str, Tensor]:
        return {name: weight.clone().requires_grad_() for name, weight in self._weights.items()}

    def _flat(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Return one vector of gradients by parameter; None is zero."""
        pairs = zip(gradients, self._weights.values(), strict=True)
        some = [torch.zeros_like(w) if g is None else g for g, w in pairs]
        return torch.cat([(g.to_dense() if g.is_sparse else g).flatten() for g in some])


class _Run(torch.nn.Module):
    """The user's forward as a module, so that ``functional_call`` can move the weights."""

    def __init__(self, model: torch.nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model, self._forward = model, forward

    def forward(self, batch: Any) -> Any:
        return self._forward(self.model, batch)
