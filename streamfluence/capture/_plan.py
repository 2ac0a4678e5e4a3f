"""Decide, before any real batch, how each weight's gradient is kept apart by example.

The model is run on two and on three examples and the shapes of every call are
compared. What scales is the example axis. What does not depend on the batch is
given one copy per example; where the model's own code does not let copies through,
or reads a weight outside its layer, the module around it is run again instead.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from streamfluence.capture._layouts import (
    Layout,
    Layouts,
    UnevenCall,
    find_layouts,
    find_unplanned,
)
from streamfluence.capture._nested import signature
from streamfluence.capture._recorder import Call, Recorder, SharedParameter
from streamfluence.capture._sites import Site, Weight, find_sites, find_weights, shortened
from streamfluence.capture._trial import Trial
from streamfluence.capture.expanded import Expanded, candidates
from streamfluence.errors import CoverageError


class Plan:
    """Sites, copies and example axes of one model and forward function.

    Args:
        model: In eval mode.
        forward: ``forward(model, batch)``.
        batch: One example batch.
        exclude: Patterns of parameter names to leave out.

    Raises:
        CoverageError: If some weight's gradient cannot be kept apart by example.
    """

    def __init__(
        self, model: nn.Module, forward: Callable, batch: Any, exclude: Sequence[str]
    ) -> None:
        self.model, self.forward = model, forward
        self.weights, self.said = find_weights(model, exclude)
        self.sites = find_sites(model, self.weights)
        self.shared: list[SharedParameter] = []
        self.copies: dict[tuple[str, int], Expanded] = {}
        self.absent: list[Site] = []  # never called in planning; a later call is refused
        trial = Trial(model, forward, batch)
        self._copy_containers(trial)
        self._known: dict[tuple, Layouts] = {signature(batch): self._settle(trial)}
        self._announce()

    def recorder(self, examples: int) -> Recorder:
        """Return a recorder that makes this plan's copies."""
        sites = [*self.sites.values(), *self.absent]
        return Recorder(sites, self.shared, self.copies, examples)

    def layouts(self, batch: Any) -> Layouts:
        """Return the layout of every call on a batch, from two small runs if its shape is new.

        Raises:
            CoverageError: If the model treats a batch of this shape in a way that was not planned.
        """
        key = signature(batch)
        if key not in self._known:
            try:
                recorder, layouts = self._observe(Trial(self.model, self.forward, batch))
            except UnevenCall as uneven:
                raise uneven.refusal() from None
            for call in recorder.calls:
                if call.site in self.absent or self._unresolved(call, layouts[call.key]):
                    raise CoverageError(
                        f"{call.site.label} treats a batch of this shape in another way than the "
                        "batch that was planned with; plan with a batch of this shape, or exclude "
                        f"{call.site.owned}"
                    )
            self._known[key] = layouts
        return self._known[key]

    def _settle(self, trial: Trial) -> Layouts:
        """Change sites and copies until every call has a usable layout, and return the layouts."""
        while True:
            try:
                recorder, layouts = self._observe(trial)
                changed = self._adopt_unseen(trial, recorder)
                if changed or self._resolve_first(trial, recorder, layouts):
                    continue
                # Two and three examples may happen to be routed evenly; more seldom are.
                whole = self.recorder(trial.examples)
                trial.run(whole)
                unplanned = find_unplanned(whole.calls, layouts, trial.examples)
                if unplanned is None:
                    return layouts
            except UnevenCall as uneven:
                unplanned = uneven
            if not unplanned.site.name:
                raise unplanned.refusal()
            self._run_routed_again(unplanned.site)

    def _observe(self, trial: Trial) -> tuple[Recorder, Layouts]:
        two, three = self.recorder(2), self.recorder(3)
        trial.run(two)
        trial.run(three)
        return two, find_layouts(two.calls, three.calls)

    def _adopt_unseen(self, trial: Trial, recorder: Recorder) -> bool:
        """Move weights that are used without a call of their module to the module around it."""
        seen = {call.site.name for call in recorder.calls}
        unseen = [site for name, site in self.sites.items() if name not in seen]
        if not unseen:
            return False
        # A weight tied to a layer that is called has a gradient anyway, which proves nothing.
        called = {w for call in recorder.calls for w in call.site.weights.values()}
        tensors = {
            tensor: weight
            for site in unseen
            for weight in site.weights.values()
            for tensor in weight.tensors.values()
            if weight not in called
        }
        pairs = zip(tensors.values(), trial.used(list(tensors)), strict=True)
        used = {weight for weight, has_gradient in pairs if has_gradient}
        for site in unseen:
            del self.sites[site.name]
            # All of them: what these few examples do not use, others may.
            owned = {path: weight for path, weight in site.weights.items() if weight not in called}
            if used & {*owned.values()}:
                self._to_parent(site, owned)
            else:
                self.absent.append(site)
        return True

    def _to_parent(self, site: Site, weights: Mapping[str, Weight]) -> None:
        """Give ``weights`` of ``site`` to the module around it, which is run again as a whole."""
        if not site.name:
            raise CoverageError(
                f"{shortened([w.names[0] for w in weights.values()])}: used outside every module's "
                "call, so there is nothing to run again; move the use into a module's forward, "
                "or exclude it"
            )
        self._move(site.name.rpartition(".")[0], site, weights)

    def _move(self, around: str, site: Site, weights: Mapping[str, Weight]) -> None:
        """Give ``weights`` of ``site`` to the module called ``around``, which holds it."""
        inner = site.name[len(around) :].lstrip(".")
        moved = {f"{inner}.{path}": weight for path, weight in weights.items()}
        kept = self.sites[around].weights if around in self.sites else {}
        module = self.model.get_submodule(around)
        self.sites[around] = Site(around, module, None, kept | moved)

    def _resolve_first(self, trial: Trial, recorder: Recorder, layouts: Layouts) -> bool:
        """Deal with the first call that has no usable layout; return whether there was one."""
        for call in recorder.calls:
            if self._unresolved(call, layouts[call.key]):
                independent = layouts[call.key].independent
                if not (independent and self._copy_output(trial, call)):
                    self._run_parent_again(call)
                return True
        return False

    def _unresolved(self, call: Call, layout: Layout) -> bool:
        """Return whether a call's outputs do not tell its examples apart yet."""
        if layout.independent:
            return call.key not in self.copies
        outputs = zip(call.edges, layout.outputs, strict=True)
        shared = any(edge is not None and axis is None for edge, axis in outputs)
        return shared or not any(layout.inputs)

    def _run_parent_again(self, call: Call) -> None:
        site = call.site
        if not site.name:
            raise CoverageError(
                f"{site.label}: what it returns mixes the examples or is shared by them, so it has "
                f"no gradient per example; return one value per example, or exclude {site.owned}"
            )
        self._drop(site)
        self._to_parent(site, site.weights)

    def _run_routed_again(self, site: Site) -> None:
        """Run the module around an uneven layer again, with all that it holds.

        Routed experts see as many tokens as are sent to them. Their neighbours in one
        container share that fate, even where the first examples do not show it.
        """
        parent = site.name.rpartition(".")[0]
        inside = f"{parent}." if parent else ""
        for one in [*self.sites.values(), *self.absent]:
            if one.name.startswith(inside) and one.name != parent:
                self._drop(one)
                self._move(parent, one, one.weights)

    def _drop(self, site: Site) -> None:
        self.sites.pop(site.name, None)
        self.absent = [other for other in self.absent if other is not site]
        self.copies = {key: value for key, value in self.copies.items() if key[0] != site.name}

    def _copy_output(self, trial: Trial, call: Call) -> bool:
        """Copy the output of a call that the batch shares, if the model lets the copies through."""
        if len(call.shapes) != 1:
            return False
        for layout in candidates(call.shapes[0]):
            if self._passes(trial, self.shared, self.copies | {call.key: layout}):
                self.copies[call.key] = layout
                self.said.append(f"one copy per example of the output: {call.site.label}")
                return True
        return False

    def _copy_containers(self, trial: Trial) -> None:
        """Copy the parameters of modules with children, if the model lets the copies through."""
        failed: set[tuple] = set()
        for name, site in list(self.sites.items()):
            kinds = {(type(site.module), p, w.shape) for p, w in site.weights.items()}
            # A module without children is cheap to run again, which needs no trial.
            if site.rule is None and any(site.module.children()) and not kinds & failed:
                if self._copy_parameters(trial, site):
                    del self.sites[name]
                else:
                    failed |= kinds

    def _copy_parameters(self, trial: Trial, site: Site) -> bool:
        """Copy all of one module's own parameters or none."""
        found: list[SharedParameter] = []
        for path, weight in site.weights.items():
            for layout in candidates(weight.shape):
                one = SharedParameter(site.module, path, weight, layout)
                if self._passes(trial, [*self.shared, *found, one], self.copies):
                    found.append(one)
                    break
            else:
                return False
        self.shared += found
        self.said += [f"one copy per example: {shared.weight.names[0]}" for shared in found]
        return True

    def _passes(self, trial: Trial, shared: Sequence[SharedParameter], copies: Mapping) -> bool:
        sites = list(self.sites.values())
        return trial.passes(
            lambda examples, nudge=1.0: Recorder(sites, shared, copies, examples, nudge)
        )

    def _announce(self) -> None:
        found = {weight for site in self.sites.values() for weight in site.weights.values()}
        found |= {shared.weight for shared in self.shared}
        absent = [weight.names[0] for weight in self.weights if weight not in found]
        if absent:
            self.said.append(f"never used by forward, left out: {shortened(absent)}")
        self.said += [
            f"no rule, run again for each example (exact, slower): {site.label}, for {site.owned}"
            for site in self.sites.values()
            if site.rule is None
        ]
