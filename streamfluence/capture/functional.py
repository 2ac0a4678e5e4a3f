"""The exact fallback for every module without a rule: run it again, one example at a time.

Only the module is run again, from its recorded inputs, and its recorded output
gradients are pulled back to its own parameters. `vmap` does all examples at once;
where it cannot, a loop does them one by one.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from streamfluence.capture._axis import Axis
from streamfluence.capture._nested import leaves, replace
from streamfluence.errors import CoverageError

_CHUNK_ENTRIES = 1 << 26  # gradient entries computed at once: 256 MiB of float32


class Functional:
    """Per-example gradients of one module's parameters, by running the module again.

    Args:
        name, module: The module, and its name for messages.
        wanted: Path of each wanted parameter inside the module.
        tensors: Every parameter and buffer of the module, by path.
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
    ) -> dict[str, Tensor]:
        """Return the gradient of each wanted parameter, shape ``(example, *parameter shape)``.

        Args:
            arguments: ``(args, kwargs)`` of the call.
            axes: The example axis of each tensor in ``arguments``; None for a shared one.
            cotangents: Gradient of each output tensor, one per example, each of the shape that a
                batch of one gives; None where the output has none.
            examples: Number of examples.

        Raises:
            CoverageError: If the module cannot be run on one example.
        """
        tensors, places = _distinct(leaves(arguments))
        axes = [axes[places.index(number)] for number in range(len(tensors))]
        inputs = [
            tensor if axis is None else axis.singles(tensor, examples)
            for tensor, axis in zip(tensors, axes, strict=True)
        ]
        mapped = [None if axis is None else 0 for axis in axes]
        run = self._one_example(arguments, places, [c is not None for c in cotangents])
        given = [c for c in cotangents if c is not None]
        with _replay_settings():
            if self.vmap_failure is None:
                try:
                    return self._all_at_once(run, inputs, mapped, given, examples)
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:  # vmap raises whatever the module's code raises
                    self.vmap_failure = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            return self._one_by_one(run, inputs, mapped, given, examples)

    def _one_example(self, arguments: Any, places: list[int], has_gradient: list[bool]) -> Callable:
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
            return pull(tuple(cotangent.to(output.dtype) for cotangent, output in pairs))[0]

        return gradients

    def _all_at_once(self, run, inputs, mapped, cotangents, examples) -> dict[str, Tensor]:
        entries = sum(self.tensors[path].numel() for path in self.wanted)
        chunk = max(1, min(examples, _CHUNK_ENTRIES // max(entries, 1)))
        return vmap(run, (mapped, 0), chunk_size=chunk)(inputs, list(cotangents))

    def _one_by_one(self, run, inputs, mapped, cotangents, examples) -> dict[str, Tensor]:
        try:
            rows = [
                run(
                    [t if axis is None else t[e] for t, axis in zip(inputs, mapped, strict=True)],
                    [cotangent[e] for cotangent in cotangents],
                )
                for e in range(examples)
            ]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise CoverageError(
                f"{self.name} ({type(self.module).__name__}) has no rule, and running it again on "
                f"one example failed: {type(error).__name__}: {error}; exclude its parameters "
                f"({', '.join(self.wanted)}) or write it from torch layers"
            ) from error
        return {path: torch.stack([row[path] for row in rows]) for path in self.wanted}


def _distinct(tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
    """Return the distinct tensors, detached, and the place of each given one among them.

    A module may ask whether two arguments are the same tensor: self-attention does.
    """
    numbers: dict[int, int] = {}
    places = [numbers.setdefault(id(tensor), len(numbers)) for tensor in tensors]
    return [tensors[places.index(n)].detach() for n in range(len(numbers))], places


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
