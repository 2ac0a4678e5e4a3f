"""Decide, before any real batch, how each weight's gradient is kept apart by example.

The model is run on two and on three examples and the shapes of every call are
compared. What scales is the example axis. What does not depend on the batch is
given one copy per example. Where a layer's calls do not tell the examples apart, or
the graph shows gradient that passes them by, the module around is run again instead,
then the one around that, up to the model; the last resort is all of forward, one
example at a time.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from typing import Any

from torch import Tensor, nn
from torch.jit import ScriptModule

from streamfluence.capture._copies import copied_output, copied_parameters
from streamfluence.capture._graph import Graph, find_miss
from streamfluence.capture._kept import refuse_kept
from streamfluence.capture._layouts import (
    Layout,
    Layouts,
    UnevenCall,
    find_layouts,
    find_unforeseen,
)
from streamfluence.capture._nested import resize, signature
from streamfluence.capture._recorder import Call, Recorder, SharedParameter
from streamfluence.capture._sites import Site, Weight, find_sites, find_weights, shortened
from streamfluence.capture._trial import Trial
from streamfluence.capture.expanded import Expanded


class Separation:
    """Sites, copies and example axes of one model and forward function.

    Args:
        model: In eval mode.
        forward: ``forward(model, batch)``.
        batch: One example batch.
        exclude: Patterns of parameter names to leave out.
        whole: Run all of forward for each example from the start.

    Attributes:
        whole: Whether all of forward is run again for each example; there are then no calls to record.
        lifted: Names of the modules whose surroundings are run again, in the order it was decided.

    Raises:
        CoverageError: If nothing that forward returns has a gradient, it is random, or computed
            with what was kept of an earlier forward.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[..., Any],
        batch: Any,
        exclude: Sequence[str],
        whole: bool = False,
    ) -> None:
        self.model, self.forward = model, forward
        self.weights, self.said = find_weights(model, exclude)
        self.sites = find_sites(model, self.weights)
        self.shared: list[SharedParameter] = []
        self.copies: dict[tuple[str, int], Expanded] = {}
        self.absent: list[Weight] = []  # never used in deciding; a later use is refused
        self._unseen: dict[str, Site] = {}  # whose modules were not called in deciding
        self.whole = False
        self.lifted: tuple[str, ...] = ()
        self.trial = Trial(model, forward, batch)
        self.trial.refuse_random()
        refuse_kept(forward, model, resize(batch, 2))
        for site in [s for s in self.sites.values() if isinstance(s.module, ScriptModule)]:
            self.lift(UnevenCall((site,), f"{site.label} is compiled code, which runs no hooks"))
        for name, found in copied_parameters(self.trial, self.sites).items():
            self.shared += found
            del self.sites[name]
            self.said += [f"one copy per example: {one.weight.names[0]}" for one in found]
        self._known: dict[tuple[Any, ...], Layouts] = {}
        if whole:
            self._lift_all()
        self.settle()

    def recorder(self, examples: int) -> Recorder:
        """Return a recorder that makes this separation's copies."""
        return Recorder(list(self.sites.values()), self.shared, self.copies, examples)

    def layouts(self, batch: Any) -> Layouts:
        """Return the layout of every call on a batch, from two small runs if its shape is new.

        Raises:
            UnevenCall: If the model treats a batch of this shape in a way that was not foreseen.
        """
        key = signature(batch)
        if key not in self._known:
            recorder, layouts = self._observe(Trial(self.model, self.forward, batch))
            for call in recorder.calls:
                if self._unresolved(call, layouts[call.key]):
                    raise UnevenCall((call.site,), _MIXED.format(call.site.label))
            self._known[key] = layouts
        return self._known[key]

    def without(self, uneven: UnevenCall) -> "Separation":
        """Return a separation in which the modules around these layers are run again for each example."""
        other = copy(self)
        other.sites, other.copies, other.said = dict(self.sites), dict(self.copies), [*self.said]
        other._unseen = {}  # blocks are what they are: what was left out stays so
        other._known = {}
        other.lift(uneven)
        return other

    def lift(self, uneven: UnevenCall) -> None:
        """Run the modules around these layers again for each example, from now on."""
        self.lifted += tuple(site.name for site in uneven.sites)
        if not uneven.sites or any(not site.name for site in uneven.sites):
            self._lift_all()
            return
        for site in uneven.sites:
            around = site.name.rpartition(".")[0]
            inside = f"{around}." if around else ""
            # Routed experts see as many tokens as are sent to them. Their neighbours in one
            # container share that fate, even where the first examples do not show it.
            known = self._unseen | self.sites
            near = [s for n, s in known.items() if n.startswith(inside) and n != around]
            for one in near if uneven.neighbours else [site]:
                self._unseen.pop(one.name, None)
                self._run_again(around, one.weights.values())

    def settle(self) -> None:
        """Change sites and copies until every call of the examples at hand has a usable layout."""
        while not self.whole:
            try:
                recorder, layouts = self._observe(self.trial)
                if self._adopt_unseen(recorder) or self._resolve_first(recorder, layouts):
                    continue
                # Two and three examples may happen to be routed evenly; more seldom are.
                whole = self.recorder(self.trial.examples)
                returned = self.trial.run(whole)
                self.refuse_unfit(whole, layouts, Graph(returned))
                self._known = {signature(self.trial.batch): layouts}
                break
            except UnevenCall as uneven:
                self.lift(uneven)
        self.absent = self._absent()

    def refuse_unfit(self, recorder: Recorder, layouts: Layouts, graph: Graph | None) -> None:
        """Raise UnevenCall where recorded calls do not give the gradients apart by example.

        Args:
            graph: Of what forward returned; None if its structure was looked at before.
        """
        if unforeseen := find_unforeseen(recorder.calls, layouts, recorder.examples):
            raise unforeseen
        for call in recorder.calls:
            if changed := call.changed():
                raise UnevenCall((call.site,), changed)
        miss = find_miss(graph, recorder.calls, self.weights) if graph else None
        if miss is not None:
            what = shortened(miss.weight.names) if miss.weight else miss.sites[0].label
            raise UnevenCall(
                miss.sites, f"{what} is also used outside the call of its module, in forward"
            )

    def announcements(self) -> list[str]:
        """Return what a record should say: what is left out, tied, copied, or takes a slower path."""
        said = list(self.said)
        if self.absent:
            names = shortened([weight.names[0] for weight in self.absent])
            said.append(f"never used by forward, left out: {names}")
        if self.whole:
            return [*said, _WHOLE]
        said += [
            f"no rule, run again for each example (exact, slower): {site.label}, for {site.owned}"
            for site in self.sites.values()
            if site.rule is None
        ]
        return said + [
            f"one example at a time (vmap failed: {site.fallback.vmap_failure}): {site.label}"
            for site in self.sites.values()
            if site.fallback.vmap_failure is not None
        ]

    def _observe(self, trial: Trial) -> tuple[Recorder, Layouts]:
        if self.whole:
            return self.recorder(2), {}
        two, three = self.recorder(2), self.recorder(3)
        trial.run(two)
        trial.run(three)
        return two, find_layouts(two.calls, three.calls)

    def _adopt_unseen(self, recorder: Recorder) -> bool:
        """Run the modules around weights again that are used without a call of their own module."""
        seen = {call.site.name for call in recorder.calls}
        unseen = [site for name, site in self.sites.items() if name not in seen]
        if not unseen:
            return False
        # A weight tied to a layer that is called has a gradient anyway, which proves nothing.
        called = {w for call in recorder.calls for w in call.site.weights.values()}
        used = self._used([w for s in unseen for w in s.weights.values() if w not in called])
        for site in unseen:
            self._unseen[site.name] = self.sites.pop(site.name)
            # All of them: what these few examples do not use, others may.
            owned = [weight for weight in site.weights.values() if weight not in called]
            if not used.isdisjoint(owned):
                if not site.name:
                    self._lift_all()
                    return True
                del self._unseen[site.name]
                self._run_again(site.name.rpartition(".")[0], owned)
        return True

    def _used(self, weights: Sequence[Weight]) -> set[Weight]:
        """Return which weights are in the graph of what forward returns."""
        tensors: dict[Tensor, Weight] = {t: w for w in weights for t in w.tensors.values()}
        if not tensors:
            return set()
        found = zip(tensors.values(), self.trial.used(list(tensors)), strict=True)
        return {weight for weight, has_gradient in found if has_gradient}

    def _run_again(self, around: str, weights: Iterable[Weight]) -> None:
        """Let the module called ``around`` account for every use of ``weights`` inside it."""
        moved = set(weights)
        module = self.model.get_submodule(around)
        inside = f"{around}." if around else ""
        for name, site in list(self.sites.items()):
            if name.startswith(inside) and name != around and moved & {*site.weights.values()}:
                kept = {p: w for p, w in site.weights.items() if w not in moved}
                del self.sites[name]
                self.copies = {key: v for key, v in self.copies.items() if key[0] != name}
                if kept:
                    self.sites[name] = Site(name, site.module, site.rule, kept)
        if around in self.sites:
            moved |= {*self.sites[around].weights.values()}
        self.sites[around] = Site(around, module, None, _paths(module, moved))

    def _lift_all(self) -> None:
        self.whole = True
        used = self._used(self.weights)
        self.sites = {"": Site("", self.model, None, _paths(self.model, used))}
        self.shared, self.copies = [], {}

    def _resolve_first(self, recorder: Recorder, layouts: Layouts) -> bool:
        """Deal with the first call that has no usable layout; return whether there was one."""
        for call in recorder.calls:
            if self._unresolved(call, layouts[call.key]):
                sites = list(self.sites.values())
                if layouts[call.key].independent and (
                    found := copied_output(self.trial, call, sites, self.shared, self.copies)
                ):
                    self.copies[call.key] = found
                    self.said.append(f"one copy per example of the output: {call.site.label}")
                else:
                    self.lift(UnevenCall((call.site,), _MIXED.format(call.site.label)))
                return True
        return False

    def _unresolved(self, call: Call, layout: Layout) -> bool:
        """Return whether a call's outputs do not tell its examples apart yet."""
        if layout.independent:
            return call.key not in self.copies
        outputs = zip(call.edges, layout.outputs, strict=True)
        shared = any(edge is not None and axis is None for edge, axis in outputs)
        return shared or not any(layout.inputs)

    def _absent(self) -> list[Weight]:
        found = {weight for site in self.sites.values() for weight in site.weights.values()}
        found |= {shared.weight for shared in self.shared}
        return [weight for weight in self.weights if weight not in found]


_MIXED = "{}: what it returns mixes the examples or is shared by them"
_WHOLE = (
    "no part of the model keeps its examples apart, so all of forward is run for one example at a "
    "time (exact, the slowest path)"
)


def _paths(module: nn.Module, weights: Iterable[Weight]) -> dict[str, Weight]:
    """Return every path inside ``module`` at which one of ``weights`` is found."""
    by_tensor = {id(tensor): weight for weight in weights for tensor in weight.tensors.values()}
    named: Mapping[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    return {path: by_tensor[id(t)] for path, t in named.items() if id(t) in by_tensor}
