"""The exact fallback for every module without a rule: run it again, one example at a time.

Only the module is run again, from its recorded inputs, and its recorded output
gradients are pulled back to its own parameters. `vmap` does all examples at once;
where it cannot, plain autograd does them one by one, on the module as it is.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from streamfluence.capture._axis import Axis
from streamfluence.capture._nested import leaves, replace

_CHUNK_ENTRIES = 1 << 26  # gradient entries computed at once: 256 MiB of float32


class FallbackFailed(Exception):
    """A module that cannot be run on one example alone; the module around it may be."""


class Functional:
    """Per-example gradients of one module's parameters, by running the module again.

    Args:
        name, module: The module, and its name for messages.
        wanted: Path of each wanted parameter inside the module. One that has several paths is
            named by all of them, and its gradient is the sum over them.
        tensors: Every parameter and buffer of the module, by path.

    Attributes:
        vmap_failure: Why vmap is not tried any more, found while deciding.
    """

    def __init__(
        self, name: str, module: nn.Module, wanted: Iterable[str], tensors: Mapping[str, Tensor]
    ) -> None:
        self.name, self.module, self.wanted, self.tensors = name, module, tuple(wanted), tensors
        self.vmap_failure: str | None = None

    def gradients(
        self,
        arguments: Any,
        axes: Sequence[Axis | None],
        cotangents: Sequence[Tensor | None],
        examples: int,
        settings: Callable[[], AbstractContextManager[Any]] = nullcontext,
        rehearsal: bool = False,
    ) -> dict[str, Tensor]:
        """Return gradients of the wanted parameters by path, each ``(example, *parameter shape)``.

        Args:
            arguments: ``(args, kwargs)`` of the call.
            axes: The example axis of each tensor in ``arguments``; None for a shared one.
            cotangents: Gradient of each output tensor, one per example, each of the shape that a
                batch of one gives; None where the output has none.
            examples: Number of examples.
            settings: What forward ran under, such as autocast.
            rehearsal: Remember that vmap fails. Later runs do not: what they return must not
                depend on the batches before them.

        Raises:
            FallbackFailed: If the module cannot be run on one example.
        """
        tensors, places = _distinct(leaves(arguments))
        axes = [axes[places.index(number)] for number in range(len(tensors))]
        inputs = [
            tensor.detach() if axis is None else axis.singles(tensor.detach(), examples)
            for tensor, axis in zip(tensors, axes, strict=True)
        ]
        mapped: list[int | None] = [None if axis is None else 0 for axis in axes]
        given = [c for c in cotangents if c is not None]
        has_gradient = [c is not None for c in cotangents]
        with settings(), _replay_settings():
            if self.vmap_failure is None:
                run = self._one_example(arguments, places, has_gradient)
                try:
                    return self._all_at_once(run, inputs, mapped, given, examples)
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:  # vmap raises whatever the module's code raises
                    if rehearsal:
                        self.vmap_failure = f"{type(error).__name__}: {_first_line(error)}"
        asks = [tensor.requires_grad for tensor in tensors]
        with settings(), torch.backends.cudnn.flags(enabled=False), torch.enable_grad():
            return self._one_by_one(
                arguments, places, inputs, asks, has_gradient, given, examples, mapped
            )

    def _one_example(
        self, arguments: Any, places: list[int], has_gradient: list[bool]
    ) -> Callable[..., Any]:
        """Return the function of one example's inputs and cotangents that gives its gradients."""
        wanted = {path: self.tensors[path].detach() for path in self.wanted}
        constant = {path: tensor.detach() for path, tensor in self.tensors.items()}

        def outputs(parameters: dict[str, Tensor], tensors: list[Tensor]) -> tuple[Tensor, ...]:
            full = constant | parameters
            args, kwargs = replace(arguments, [tensors[place] for place in places])
            with _flat_weights(self.module, full):
                found = functional_call(self.module, full, args, kwargs, tie_weights=False)
            pairs = zip(leaves(found), has_gradient, strict=True)
            return tuple(tensor for tensor, wanted in pairs if wanted)

        def gradients(tensors: list[Tensor], cotangents: list[Tensor]) -> dict[str, Tensor]:
            found, pull, *_ = vjp(lambda parameters: outputs(parameters, tensors), wanted)
            pairs = zip(cotangents, found, strict=True)
            fitted = tuple(_fitted(cotangent, output) for cotangent, output in pairs)
            pulled: dict[str, Tensor] = pull(fitted)[0]
            return pulled

        return gradients

    def _all_at_once(
        self,
        run: Callable[..., Any],
        inputs: list[Tensor],
        mapped: list[int | None],
        cotangents: Sequence[Tensor],
        examples: int,
    ) -> dict[str, Tensor]:
        entries = sum(self.tensors[path].numel() for path in self.wanted)
        chunk = max(1, min(examples, _CHUNK_ENTRIES // max(entries, 1)))
        rows = vmap(run, (mapped, 0), chunk_size=chunk)(inputs, list(cotangents))
        return {path: row.detach() for path, row in rows.items()}

    def _one_by_one(
        self,
        arguments: Any,
        places: list[int],
        inputs: list[Tensor],
        asks: list[bool],
        has_gradient: list[bool],
        cotangents: Sequence[Tensor],
        examples: int,
        mapped: list[int | None],
    ) -> dict[str, Tensor]:
        # A parameter with several paths is one tensor here: the first path has the whole sum.
        first = {id(self.tensors[path]): path for path in reversed(self.wanted)}
        wanted = {path: self.tensors[path] for path in first.values()}
        rows: dict[str, list[Tensor]] = {path: [] for path in wanted}
        for example in range(examples):
            values = [  # clones: the module may change them in place
                (t if axis is None else t[example]).clone().requires_grad_(ask)
                for t, axis, ask in zip(inputs, mapped, asks, strict=True)
            ]
            args, kwargs = replace(arguments, [values[place] for place in places])
            own = [cotangent[example] for cotangent in cotangents]
            try:
                pairs = zip(leaves(self.module(*args, **kwargs)), has_gradient, strict=True)
                outputs = [tensor for tensor, has in pairs if has]
                found = torch.autograd.grad(
                    outputs,
                    list(wanted.values()),
                    [_fitted(c, output) for c, output in zip(own, outputs, strict=True)],
                    allow_unused=True,
                )
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # the module's own code may raise anything
                raise FallbackFailed(
                    f"{self.name} has no rule, and running it again on one example failed: "
                    f"{type(error).__name__}: {_first_line(error)}"
                ) from error
            for (path, tensor), gradient in zip(wanted.items(), found, strict=True):
                rows[path].append(torch.zeros_like(tensor) if gradient is None else dense(gradient))
        return {path: torch.stack(some).detach() for path, some in rows.items()}


def dense(gradient: Tensor) -> Tensor:
    """Return a gradient as a dense tensor: an embedding may give a sparse one."""
    return gradient.to_dense() if gradient.is_sparse else gradient


def _fitted(cotangent: Tensor, output: Tensor) -> Tensor:
    """Return the gradient in the output's dtype and shape, which a batch of one may squeeze."""
    if cotangent.shape != output.shape and cotangent.numel() == output.numel():
        cotangent = cotangent.reshape(output.shape)
    return cotangent.to(output.dtype)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _distinct(tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
    """Return the distinct tensors, and the place of each given one among them.

    A module may ask whether two arguments are the same tensor: self-attention does.
    """
    numbers: dict[int, int] = {}
    places = [numbers.setdefault(id(tensor), len(numbers)) for tensor in tensors]
    return [tensors[places.index(n)] for n in range(len(numbers))], places


@contextmanager
def _replay_settings() -> Iterator[None]:
    """Choose attention that vmap can batch, and recurrent backward that eval() allows."""
    # The fused attentions have no batching rule and fall back to a loop (pytorch#117016).
    with (
        warnings.catch_warnings(),
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.cudnn.flags(enabled=False),
        torch.enable_grad(),
    ):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _flat_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let recurrent modules read ``tensors``: they keep a list of weights beside their parameters."""
    changed = []
    try:
        for path, part in module.named_modules():
            if isinstance(part, nn.RNNBase):
                changed.append((part, part._flat_weights))
                prefix = f"{path}." if path else ""
                part._flat_weights = [tensors[prefix + name] for name in part._flat_weights_names]
        yield
    finally:
        for part, weights in changed:
            part._flat_weights = weights
