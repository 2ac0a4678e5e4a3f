"""Try a separation's copies: the model must return the same, and each copy reach its own example only."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from streamfluence.capture._nested import example_count, leaves, resize
from streamfluence.capture._plain import plain_gradients, run_plainly
from streamfluence.capture._recorder import Recorder
from streamfluence.errors import CoverageError

_NUDGE = 1.5


class Trial:
    """Runs of a model on a few examples of one batch, without and with a recorder's copies."""

    def __init__(self, model: nn.Module, forward: Callable[..., Any], batch: Any) -> None:
        self.model, self.forward, self.batch = model, forward, batch
        self.examples = example_count(batch)
        self._plain_runs: dict[int, list[Tensor]] = {}

    def run(self, recorder: Recorder, batch: Any = None) -> list[Tensor]:
        """Return the tensors that forward returns on as many examples as the recorder is for."""
        batch = resize(self.batch if batch is None else batch, recorder.examples)
        with recorder.installed():
            return leaves(recorder.run(self.forward, self.model, batch))

    def passes(self, recorder_of: Callable[..., Recorder]) -> bool:
        """Return whether ``recorder_of(examples, nudge)`` makes copies that change nothing."""
        try:
            for count in sorted({2, 3, self.examples}):
                if not _equal(self.run(recorder_of(count)), self._plain(count)):
                    return False
            # Changed copies of the second example must leave the first example alone.
            nudged = self.run(recorder_of(2, _NUDGE))
            return _equal(_first(nudged), _first(self._plain(2)))
        except (CoverageError, torch.OutOfMemoryError):
            raise
        except Exception:  # shapes that do not fit end anywhere in the model's own code
            return False

    def refuse_random(self) -> None:
        """Refuse a model that returns something else when the same batch is run twice.

        Raises:
            CoverageError: With the largest difference and the usual causes.
        """
        refuse_random(self.forward, self.model, resize(self.batch, 2))

    def used(self, tensors: Sequence[Tensor]) -> list[bool]:
        """Return which of ``tensors`` autograd finds behind what forward returns.

        Raises:
            CoverageError: If nothing that forward returns has a gradient.
        """
        returned = leaves(run_plainly(self.forward, self.model, resize(self.batch, 2)))
        roots = [tensor for tensor in returned if tensor.requires_grad]
        if not roots:
            raise CoverageError(
                "nothing that forward returns depends on a trainable parameter; check that it "
                "neither detaches its outputs nor runs under torch.no_grad()"
            )
        ones = [torch.ones_like(root) for root in roots]
        found = plain_gradients(roots, list(tensors), ones)
        return [gradient is not None for gradient in found]

    def _plain(self, count: int) -> list[Tensor]:
        if count not in self._plain_runs:
            batch = resize(self.batch, count)
            returned = leaves(run_plainly(self.forward, self.model, batch))
            self._plain_runs[count] = [tensor.detach() for tensor in returned]
        return self._plain_runs[count]


def refuse_random(
    forward: Callable[..., Any],
    model: nn.Module,
    batch: Any,
    measure: Callable[[Any], Tensor] | None = None,
) -> None:
    """Refuse a model, or a loss, that gives something else when the same batch is run twice.

    Args:
        measure: From what forward returns to the losses; None to look at forward alone.

    Raises:
        CoverageError: With the usual causes.
    """
    (first, losses), (second, others) = (_once(forward, model, batch, measure) for _ in range(2))
    for what, found, expected in (("forward", second, first), ("the loss", others, losses)):
        if not _equal(found, expected):
            raise CoverageError(
                f"{what} returns different outputs when the same batch is run twice: it is random "
                "(dropout by torch.nn.functional.dropout, which is on unless told training=False, or "
                "noise drawn in forward or in the loss), or it changes a buffer that it reads; make "
                f"{what} return the same for the same batch, or every score would be of another model"
            )


def _once(
    forward: Callable[..., Any],
    model: nn.Module,
    batch: Any,
    measure: Callable[[Any], Tensor] | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return what forward and the loss return."""
    returned = run_plainly(forward, model, batch)
    losses = [] if measure is None else [measure(returned).detach().clone()]
    return [tensor.detach().clone() for tensor in leaves(returned)], losses


def _first(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the first example of everything that has two."""
    return [tensor[0] for tensor in tensors if tensor.ndim and len(tensor) == 2]


def _equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return len(found) == len(expected) and all(
        a.shape == b.shape and a.dtype == b.dtype and _close(a.detach(), b)
        for a, b in zip(found, expected, strict=True)
    )


def _close(a: Tensor, b: Tensor) -> bool:
    if not a.dtype.is_floating_point or not b.numel():
        return torch.equal(a, b)
    tolerance = 64 * torch.finfo(a.dtype).eps
    scale = float(b.abs().nan_to_num(0.0, 0.0, 0.0).max())
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
