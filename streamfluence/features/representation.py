"""What a module of the model returns for each example."""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from streamfluence.batches import example_count
from streamfluence.errors import CoverageError, InputError
from streamfluence.features._forward import OfForward
from streamfluence.features.base import Forward, Ground


class Representation(OfForward):
    """The output of one module, pooled over positions.

    A score is the inner product of the two representations, in the metric of the curvature; with
    ``score.scale = "cosine"`` their cosine similarity.

    Args:
        module: Its name, as torch's ``named_modules()`` has it; empty for the model itself. It must be
            called once in forward.
        pool: ``mean`` over positions, ``last`` position, or ``flatten``: all of them side by side.
        channels: Which axis of an output is no position: ``first`` after the example axis, ``last``, or
            ``auto``: last of up to three axes (a sequence), first of more (images).
        mask: Key of the batch under which positions that count are not zero, shape
            ``(example, position)``; without it all of them count, padding too.
        output: Of a module that returns several things: which, counted from 0, or its key.
    """

    def __init__(
        self,
        *,
        module: str,
        pool: str = "mean",
        channels: str = "auto",
        mask: str | None = None,
        output: int | str | None = None,
    ) -> None:
        for name, text in (("module", module), ("mask", mask or "")):
            if not isinstance(text, str):
                raise InputError(f"feature.options.{name} = {text!r} is no name, in quotes")
        for name, given, known in (
            ("pool", pool, ("mean", "last", "flatten")),
            ("channels", channels, ("auto", "first", "last")),
        ):
            if given not in known:
                raise InputError(
                    f"feature.options.{name} = {given!r} is none of {', '.join(known)}"
                )
        if mask is not None and pool == "flatten":
            raise InputError(
                "feature.options.mask leaves positions out, which pool = 'flatten' cannot: rows would have "
                "different widths; use pool = 'mean' or 'last'"
            )
        self.module, self.pool, self.channels = module, pool, channels
        self.mask, self.output = mask, output

    @property
    def block(self) -> str:
        return self.module or "model"

    @property
    def what(self) -> str:
        return f"the output of {self._name}"

    @property
    def unpadded(self) -> str:
        return "name the key of the batch that says which positions count as feature.options.mask"

    def meaning(self, measurement: str) -> str:
        return (
            f"score = inner product of the outputs of {self._name} ({self.pool} over positions) for "
            "example and query, summed over checkpoints by their weights; large: the model represents "
            "them alike; a similarity, which predicts nothing of what removing the example does"
        )

    def unit(self, measurement: str) -> str:
        return f"square of an output of {self._name}"

    def at(self, ground: Ground) -> None:
        modules = dict(ground.model.named_modules())
        if self.module not in modules:
            raise InputError(
                f"feature.options.module = {self.module!r}: the model has no such module; "
                f"{_nearest(self.module, [name for name in modules if name])}"
            )
        self._watched = modules[self.module]
        super().at(ground)

    def vectors(self, forward: Forward, batch: Any, measurement: str) -> tuple[Tensor, Tensor]:
        task = self._ground.task
        with _outputs(self._watched, self._pick, batch, self._pooled) as seen:
            returned = forward(self._ground.model, batch)
        if len(seen) != 1:
            how = f"called {len(seen)} times in one forward" if seen else "not called in forward"
            raise InputError(
                f"{self._name} is {how}, so it has not one output an example; name a module that is called "
                "once, such as one around it or inside it"
            )
        return seen[0], self._values.of(lambda r: task.measure(measurement, r), returned)

    @property
    def _name(self) -> str:
        return f"the module {self.module!r}" if self.module else "the model"

    def _pick(self, returned: Any) -> Tensor:
        """Return the tensor that is asked for of what the module returned."""
        if isinstance(returned, Tensor):
            if self.output is not None:
                raise InputError(
                    f"{self._name} returns one tensor; leave feature.options.output out"
                )
            return returned
        several = list(returned) if isinstance(returned, Mapping) else None
        if several is None and isinstance(returned, tuple | list):
            several = list(range(len(returned)))
        if several is None or self.output not in several:
            raise InputError(
                f"{self._name} returns a {type(returned).__name__}, not a tensor; "
                + (
                    f"say which of it by feature.options.output: {', '.join(map(repr, several))}"
                    if several
                    else "name a module that returns one"
                )
            )
        picked = returned[self.output]
        if not isinstance(picked, Tensor):
            raise InputError(
                f"output {self.output!r} of {self._name} is a {type(picked).__name__}, not a tensor"
            )
        return picked

    def _pooled(self, output: Tensor, batch: Any) -> Tensor:
        """Return one vector an example, ``(example, width)``, that nothing later changes."""
        count = example_count(batch)
        if output.ndim == 0 or len(output) != count:
            raise CoverageError(
                f"{self._name} returns a tensor of shape {tuple(output.shape)} for a batch of {count} "
                "examples; the first axis must count examples, so name another module"
            )
        if not output.is_floating_point():
            raise InputError(f"{self._name} returns {output.dtype}, not floating-point numbers")
        if output.ndim == 1:
            return output.detach().float()[:, None].clone()
        first = self.channels == "first" or (self.channels == "auto" and output.ndim > 3)
        kept = output.detach().float()
        kept = (kept.movedim(1, -1) if first else kept).flatten(1, -2) if kept.ndim > 2 else kept
        if kept.ndim == 2:
            return kept.clone()
        return self._over_positions(kept, batch)

    def _over_positions(self, kept: Tensor, batch: Any) -> Tensor:
        """Return ``(example, position, width)`` pooled; NaN for an example of which none counts."""
        if self.pool == "flatten":
            return kept.flatten(1).clone()
        counted = self._counted(kept, batch)
        if self.pool == "mean":
            total = (kept * counted[:, :, None]).sum(1) if self.mask else kept.sum(1)
            return total / counted.sum(1, keepdim=True)
        places = torch.arange(1, kept.shape[1] + 1, device=kept.device)
        last = (places * counted).max(1).values.long()
        rows = kept[torch.arange(len(kept), device=kept.device), last - 1]
        return torch.where(last[:, None] > 0, rows, torch.nan)

    def _counted(self, kept: Tensor, batch: Any) -> Tensor:
        """Return 1 for positions that count and 0 for others, ``(example, position)``, float32."""
        if self.mask is None:
            return torch.ones(kept.shape[:2], device=kept.device)
        found = batch.get(self.mask) if isinstance(batch, Mapping) else None
        if not isinstance(found, Tensor) or found.shape != kept.shape[:2]:
            there = tuple(found.shape) if isinstance(found, Tensor) else "no tensor"
            raise InputError(
                f"feature.options.mask = {self.mask!r}: the batch has {there} under that key, but "
                f"{self._name} has {tuple(kept.shape[:2])} examples and positions"
            )
        return (found != 0).to(kept)


@contextmanager
def _outputs(module: nn.Module, pick: Any, batch: Any, pooled: Any) -> Iterator[list[Tensor]]:
    """Give the list to which every call of a module adds its pooled output; no hook is left behind."""
    seen: list[Tensor] = []

    def see(_: nn.Module, __: Any, returned: Any) -> None:
        seen.append(pooled(pick(returned), batch))

    handle = module.register_forward_hook(see)
    try:
        yield seen
    finally:
        handle.remove()


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, 3, cutoff=0.5)
    near = near or [each for each in names if name and name in each][:3]
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"it has: {shown or 'none'}"
