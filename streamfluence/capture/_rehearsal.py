"""Go through what a separation does on the examples it was made from, and change what does not work.

Modules that cannot be run again for one example, and layers whose rows are not those of
their examples (a model that sorts its batch inside), give way to the modules around them.
"""

import torch

from streamfluence.capture._blocks import Filled, find_blocks
from streamfluence.capture._graph import Graph
from streamfluence.capture._layouts import UnevenCall
from streamfluence.capture._nested import leaves, select
from streamfluence.capture._proof import Proof, turned
from streamfluence.capture._separation import Separation
from streamfluence.capture._sites import Site
from streamfluence.capture._tape import Passed
from streamfluence.errors import CoverageError


def rehearse(separation: Separation) -> None:
    """Change a separation until its rows of the examples it was decided with are right.

    Raises:
        CoverageError: If forward is random, detached, or returns its examples in another order.
    """
    while not separation.whole:
        try:
            wrong = _wrong_sites(separation)
        except UnevenCall as uneven:
            separation.lift(uneven)
            separation.settle()
            continue
        if not wrong:
            return
        batched = [s for s in wrong if s.rule is None and s.fallback.vmap_failure is None]
        for site in batched:
            site.fallback.vmap_failure = "its gradients are not those of plain autograd"
        if not batched:
            what = "the rows of its examples are not those that autograd gives"
            separation.lift(UnevenCall(tuple(wrong), what))
            separation.settle()


def _wrong_sites(separation: Separation) -> list[Site]:
    """Return the sites whose rows do not belong to their examples."""
    count = separation.trial.examples
    batch = select(separation.trial.batch, turned(count, 0))
    layouts, recorder = separation.layouts(batch), separation.recorder(count)
    recorder.rehearsal = True
    with recorder.installed():
        returned = recorder.run(separation.forward, separation.model, batch)
        roots = [tensor for tensor in leaves(returned) if tensor.requires_grad]
        if not roots:
            raise CoverageError(
                "the outputs do not depend on any captured parameter; check that forward neither "
                "detaches them nor runs under torch.no_grad()"
            )
        graph = Graph(roots)
        separation.refuse_unfit(recorder, layouts, graph)
        place = next((p for p, root in enumerate(roots) if root.ndim and len(root) == count), None)
        if place is None:
            return []
        generator = torch.Generator().manual_seed(0)
        random = torch.randn(roots[place].shape, generator=generator).to(roots[place])
        passed = Passed(
            batch, separation, recorder, layouts, returned, roots, (), graph.precision()
        )
        arrived = passed.gradients([roots[place]], [random], last=True)
        blocks = find_blocks(separation.weights, list(separation.sites.values()), separation.shared)
        cotangents = [random if p == place else None for p in range(len(roots))]
        claim = passed.claim(cotangents, passed.uses(blocks, arrived))
    fault = Proof(separation.model, separation.forward, separation.weights, blocks).fault(
        claim, turned(count, 1), 1
    )
    if fault is None:
        return []
    if not fault.blocks:
        raise CoverageError(fault.what)
    return _users(separation, fault.blocks)


def _users(separation: Separation, blocks: tuple[Filled, ...]) -> list[Site]:
    """Return the sites that use the weights of these blocks; none if only copies stand for them."""
    weights = {weight for filled in blocks for weight in (filled.matrix, filled.bias)}
    found = [s for s in separation.sites.values() if not weights.isdisjoint(s.weights.values())]
    if not found:
        raise UnevenCall((), "a copied parameter's rows do not belong to their examples")
    return found
