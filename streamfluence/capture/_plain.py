"""A model run as it was written, nothing recorded, and what autograd itself says of it."""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from streamfluence.capture.functional import dense
from streamfluence.errors import CoverageError


def run_plainly(forward: Callable[..., Any], model: nn.Module, batch: Any) -> Any:
    """Return what ``forward`` returns, run as it was written and with gradients."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with eager(), torch.enable_grad(), without_cudnn(recurrent):
        return forward(model, batch)


def plain_gradients(
    outputs: Sequence[Tensor],
    tensors: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    keep: bool = False,
) -> tuple[Tensor | None, ...]:
    """Return autograd's gradients, dense, None for a tensor that is not used; ``keep`` the graph for more.

    Raises:
        CoverageError: If autograd itself fails on the model.
    """
    try:
        found = torch.autograd.grad(
            outputs, tensors, cotangents, retain_graph=keep, allow_unused=True
        )
        return tuple(None if gradient is None else dense(gradient) for gradient in found)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        said = (str(error).splitlines() or [""])[0]
        if "backward through the graph a second time" in said:
            raise CoverageError(
                "autograd fails on this model because it computes with a tensor that was kept from an "
                "earlier forward together with its graph, which is gone (a merged or cached weight, a "
                "hidden state); compute it anew in every forward"
            ) from error
        raise CoverageError(
            f"autograd itself fails on this model: {said}; a backward pass of the whole model has to "
            "work before gradients of single examples can"
        ) from error


def eager() -> AbstractContextManager[Any]:
    """Run compiled modules as they were written: a compiler would trace the hooks, or skip them."""
    # Nothing is compiled before this module is imported, and importing it takes a second.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def without_cudnn(wanted: bool = True) -> AbstractContextManager[Any]:
    """Keep off cuDNN if ``wanted``: the backward of its recurrent layers needs training mode."""
    # Nothing is set where nothing has to change: flags() would also reset the user's
    # choices of determinism and of TF32.
    return torch.backends.cudnn.flags(enabled=False) if wanted else nullcontext()
