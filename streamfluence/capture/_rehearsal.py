"""Go through what a plan does on the examples it was made from, and change what does not work.

Modules that cannot be run again for one example, and layers whose rows are not those of
their examples (a model that sorts its batch inside), give way to the modules around them.
"""

import torch

from streamfluence.capture._blocks import Filled, find_blocks
from streamfluence.capture._graph import Graph
from streamfluence.capture._layouts import UnevenCall
from streamfluence.capture._nested import leaves, select
from streamfluence.capture._plan import Plan
from streamfluence.capture._proof import Proof, turned
from streamfluence.capture._sites import Site
from streamfluence.capture._tape import Passed
from streamfluence.errors import CoverageError


def rehearse(plan: Plan) -> None:
    """Change a plan until its rows of the examples planned with are right.

    Raises:
        CoverageError: If forward is random, detached, or returns its examples in another order.
    """
    while not plan.whole:
        try:
            wrong = _wrong_sites(plan)
        except UnevenCall as uneven:
            plan.lift(uneven)
            plan.settle()
            continue
        if not wrong:
            return
        batched = [s for s in wrong if s.rule is None and s.fallback.vmap_failure is None]
        for site in batched:
            site.fallback.vmap_failure = "its gradients are not those of plain autograd"
        if not batched:
            what = "the rows of its examples are not those that autograd gives"
            plan.lift(UnevenCall(tuple(wrong), what))
            plan.settle()


def _wrong_sites(plan: Plan) -> list[Site]:
    """Return the sites whose rows do not belong to their examples."""
    count = plan.trial.examples
    batch = select(plan.trial.batch, turned(count, 0))
    layouts, recorder = plan.layouts(batch), plan.recorder(count)
    recorder.rehearsal = True
    with recorder.installed():
        returned = recorder.run(plan.forward, plan.model, batch)
        roots = [tensor for tensor in leaves(returned) if tensor.requires_grad]
        if not roots:
            raise CoverageError(
                "the outputs do not depend on any captured parameter; check that forward neither "
                "detaches them nor runs under torch.no_grad()"
            )
        graph = Graph(roots)
        plan.refuse_unfit(recorder, layouts, graph)
        place = next((p for p, root in enumerate(roots) if root.ndim and len(root) == count), None)
        if place is None:
            return []
        generator = torch.Generator().manual_seed(0)
        random = torch.randn(roots[place].shape, generator=generator).to(roots[place])
        passed = Passed(batch, plan, recorder, layouts, returned, roots, (), graph.precision())
        arrived = passed.gradients([roots[place]], [random], last=True)
        blocks = find_blocks(plan.weights, list(plan.sites.values()), plan.shared)
        cotangents = [random if p == place else None for p in range(len(roots))]
        claim = passed.claim(cotangents, passed.uses(blocks, arrived))
    fault = Proof(plan.model, plan.forward, plan.weights, blocks).fault(claim, turned(count, 1), 1)
    if fault is None:
        return []
    if not fault.blocks:
        raise CoverageError(fault.what)
    return _users(plan, fault.blocks)


def _users(plan: Plan, blocks: tuple[Filled, ...]) -> list[Site]:
    """Return the sites that use the weights of these blocks; none if only copies stand for them."""
    weights = {weight for filled in blocks for weight in (filled.matrix, filled.bias)}
    found = [s for s in plan.sites.values() if not weights.isdisjoint(s.weights.values())]
    if not found:
        raise UnevenCall((), "a copied parameter's rows do not belong to their examples")
    return found
