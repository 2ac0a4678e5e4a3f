"""Watch one forward pass: every call of every site, with its inputs and where its gradient arrives.

Gradients are later asked for at the *outputs* of calls, never at weights, so the
backward pass costs the activation path only. Where a gradient arrives is noted
inside the call, before an in-place activation changes the output.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from streamfluence.capture._nested import leaves, rebuild
from streamfluence.capture._plain import run_plainly
from streamfluence.capture._sites import Site, Weight
from streamfluence.capture.expanded import Expanded
from streamfluence.errors import CoverageError


@dataclass(frozen=True)
class SharedParameter:
    """A parameter that a container's own code reads, replaced by one copy per example."""

    module: nn.Module
    attribute: str
    weight: Weight
    layout: Expanded

    def copies(self, examples: int) -> Tensor:
        """Return the leaf that takes the parameter's place."""
        tensor = next(iter(self.weight.tensors.values())).detach()
        return self.layout.copies(tensor, examples).requires_grad_()


@dataclass
class Call:
    """One call of a site; lists run over the tensors of its arguments or of its output."""

    site: Site
    number: int
    arguments: Any
    inputs: list[Tensor]
    versions: list[int]
    shapes: list[tuple[int, ...]]  # of the outputs, before copies are made
    edges: list[GradientEdge | None]
    sources: list[GradientEdge]  # where the inputs come from
    layout: Expanded | None
    views: list[tuple[Tensor, int]]
    settings: Callable[[], AbstractContextManager[Any]]  # such as autocast, to run the module again

    @property
    def key(self) -> tuple[str, int]:
        return self.site.name, self.number

    def changed(self) -> str | None:
        """Return what was changed in place after it was noted, as a sentence, or None."""
        reads = self.site.rule is None or "weight" in self.site.weights
        pairs = zip(self.inputs, self.versions, strict=True)
        if reads and any(tensor._version != version for tensor, version in pairs):
            return (
                f"{self.site.label}: its input was changed in place after the call, so its "
                "gradient is lost; use the out-of-place operation after it"
            )
        if any(tensor._version != version for tensor, version in self.views):
            return (
                f"{self.site.label}: its output is a view that was changed in place after the "
                "call, so its gradient is lost; use the out-of-place operation (inplace=False)"
            )
        return None


class Recorder:
    """The calls of one forward pass, in order.

    Args:
        sites: The modules to watch.
        shared: Parameters to replace by copies.
        layouts: How to copy the output of a call that does not depend on the batch, by call.
        examples: Number of examples in the batch.
        nudge: Multiply all copies but the first example's, to see which outputs they reach.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        shared: Sequence[SharedParameter],
        layouts: Mapping[tuple[str, int], Expanded],
        examples: int,
        nudge: float = 1.0,
    ) -> None:
        self.sites, self.shared, self.layouts = sites, shared, layouts
        self.examples, self.nudge = examples, nudge
        self.calls: list[Call] = []
        self.copies: list[Tensor] = []
        self.recording, self.paused, self.rehearsal = False, False, False
        self._counts: dict[str, int] = {}
        self._originals: list[nn.Parameter | None] = []

    @contextmanager
    def installed(self) -> Iterator["Recorder"]:
        """Watch the model, and leave it as it was."""
        with ExitStack() as stack:
            for site in self.sites:
                # First for a layer, so that the user's own hooks see and change what they
                # would; last for the fallback, which runs the module with its hooks.
                handle = site.module.register_forward_hook(
                    self._hook(site), with_kwargs=True, prepend=site.rule is not None
                )
                stack.callback(handle.remove)
            for shared in self.shared:
                original = shared.module._parameters[shared.attribute]
                self._originals.append(original)
                stack.callback(shared.module._parameters.__setitem__, shared.attribute, original)
                self.copies.append(self._nudged(shared.copies(self.examples), shared.layout))
                shared.module._parameters[shared.attribute] = self.copies[-1]  # type: ignore
            yield self

    def run(self, forward: Callable[..., Any], model: nn.Module, batch: Any) -> Any:
        """Return what ``forward`` returns, recording its calls."""
        self.recording = True
        try:
            return run_plainly(forward, model, batch)
        finally:
            self.recording = False

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Let a module run again without being recorded or changed."""
        self.paused = True
        self._put(self._originals)
        try:
            yield
        finally:
            self.paused = False
            self._put(self.copies)

    def _put(self, tensors: Sequence[Tensor | None]) -> None:
        for shared, tensor in zip(self.shared, tensors, strict=True):
            shared.module._parameters[shared.attribute] = tensor  # type: ignore

    def _hook(self, site: Site) -> Callable[..., Any]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> Any:
            if self.paused:
                return None
            if self.recording:
                return self._record(site, (args, kwargs), output)
            return self._again(site, output)

        return hook

    def _record(self, site: Site, arguments: Any, output: Any) -> Any:
        if _inside_function():
            raise CoverageError(
                f"{site.label} ran inside a torch.autograd.Function, which hides its gradient: in "
                "activation checkpointing of the reentrant kind, or in a reversible layer; use "
                "checkpoint(..., use_reentrant=False), switch checkpointing off, or exclude its "
                "parameters"
            )
        if not torch.is_grad_enabled():
            return None  # no gradient arrives at such a call, so it has no part in any row
        number = self._counts.get(site.name, 0)
        self._counts[site.name] = number + 1
        layout = self.layouts.get((site.name, number))
        before = leaves(output)
        after, views = self._protected(site, layout, arguments, output)
        inputs = leaves(arguments)
        self.calls.append(
            Call(
                site=site,
                number=number,
                arguments=arguments,
                inputs=inputs,
                versions=[tensor._version for tensor in inputs],
                shapes=[tuple(tensor.shape) for tensor in before],
                edges=[get_gradient_edge(t) if t.requires_grad else None for t in leaves(after)],
                sources=[get_gradient_edge(t) for t in inputs if t.requires_grad],
                layout=layout,
                views=views,
                settings=_settings(inputs),
            )
        )
        return after

    def _protected(
        self, site: Site, layout: Expanded | None, arguments: Any, output: Any
    ) -> tuple[Any, list[tuple[Tensor, int]]]:
        """Return the output to go on with, and the views whose change would lose the gradient."""
        if layout is not None:
            return self._nudged(layout.copies(output, self.examples), layout), []
        if site.rule is None and sum(tensor.requires_grad for tensor in leaves(output)) > 1:
            # One output may be computed from another, or be the same tensor. The module that
            # is run again counts that path itself, so each output's gradient has to be only
            # what arrives from outside the module.
            return rebuild(output, apart), []
        views = [tensor for tensor in leaves(output) if tensor.requires_grad and tensor._is_view()]
        inside = {id(tensor._base if tensor._is_view() else tensor) for tensor in leaves(arguments)}
        if views and views[0] is output and id(output._base) not in inside:
            # An in-place operation on a view rewrites the view's place in the graph and
            # passes our edge by. Nobody else holds the base of a layer's result, so the
            # result may as well be no view. A linear layer's result often is one.
            return apart(output), []
        return output, [(tensor, tensor._version) for tensor in views]

    def _again(self, site: Site, output: Any) -> Any:
        """Repeat the copies when checkpointing runs a call again during the backward pass."""
        for call in self.calls:
            same = call.site is site and isinstance(output, Tensor)
            if same and call.layout is not None and call.shapes == [tuple(output.shape)]:
                return call.layout.copies(output, self.examples)
        return None

    def _nudged(self, copies: Tensor, layout: Expanded) -> Tensor:
        if self.nudge == 1.0:
            return copies
        with torch.no_grad():
            factors = torch.full((self.examples,), self.nudge, dtype=copies.dtype)
            factors[0] = 1.0
            axis = layout.axis or 0
            nudged = copies * factors.to(copies.device).view(-1, *[1] * (copies.ndim - 1 - axis))
        return nudged.requires_grad_()


def _inside_function() -> bool:
    """Return whether the forward of a ``torch.autograd.Function`` runs."""
    # It alone, and inference mode, switch forward derivatives off beside gradients.
    return not (torch._C._is_fwd_grad_enabled() or torch.is_inference_mode_enabled())


def _settings(inputs: Sequence[Tensor]) -> Callable[[], AbstractContextManager[Any]]:
    """Return what makes the autocast that is on now."""
    kind = inputs[0].device.type if inputs else "cpu"
    if not torch.is_autocast_enabled(kind):
        return nullcontext
    dtype = torch.get_autocast_dtype(kind)
    return lambda: torch.autocast(kind, dtype)


def apart(tensor: Tensor) -> Tensor:
    """Return the same values at a place of their own in the graph; no view, and no copy."""
    view: Tensor = torch.ops.aten._unsafe_view.default(tensor, tensor.shape)
    return view
