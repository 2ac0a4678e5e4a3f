"""The directions that training gradients are multiplied with: queries' gradients, solved by the curvature."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamfluence.errors import InputError, NonFiniteError
from streamfluence.execution import Progress
from streamfluence.options import make
from streamfluence.readouts.base import Arrays
from streamfluence.run.at_checkpoint import PLANNING, AtCheckpoint, at_checkpoints
from streamfluence.run.session import Session
from streamfluence.run.source import DIRECTIONS, SOURCE
from streamfluence.run.unprojected import Unprojected, dampings
from streamfluence.solvers.base import Operator, Solved

_GROUP_ENTRIES = 1 << 26  # of the vectors solved at once; a solver holds a few times as many


@dataclass
class _Solves:
    """How well the systems of one checkpoint were solved, the worst of all."""

    residual: float = 0.0
    steps: int = 0

    def add(self, solved: Solved) -> None:
        """Take note of a system; refuse one that is not solved."""
        _refuse_unsolved(solved)
        self.residual = max(self.residual, solved.residual)
        self.steps = max(self.steps, solved.steps)


def make_directions(
    session: Session, spec: Mapping[str, Any], progress: Progress
) -> tuple[Arrays, dict[str, Any]]:
    """Return what the queries' scores are products with, and the facts of its making.

    Returns:
        Arrays ``directions.C`` of every checkpoint, shape ``(query, weight)``, and
        ``directions.value``: the measurement of each query at the first. Facts, a list over
        checkpoints each: ``residual``, ``steps`` and ``alone``, whether examples are run one at a time.

    Raises:
        NonFiniteError: If a query's gradient is not finite.
        InputError: If a system is not solved within the solver's steps.
    """
    queries, arrays = spec["queries"], {}
    facts: dict[str, Any] = {"residual": [], "steps": [], "alone": []}
    for read in ("train", queries):
        session.refresh(read)
    progress.start("directions", len(session.run.checkpoints), "checkpoints")
    for at in at_checkpoints(session):
        net, solves = Unprojected(at), _Solves()
        gradients, values = net.gradients(queries)
        _refuse_non_finite(queries, at, gradients, values)
        found = solved(at, net, gradients, spec, solves.add)
        arrays[f"{DIRECTIONS}.{at.number}"] = found.cpu().numpy()
        arrays.setdefault(f"{DIRECTIONS}.value", values.detach().float().cpu().numpy())
        facts["residual"].append(solves.residual)
        facts["steps"].append(solves.steps)
        facts["alone"].append(one_by_one(session, net, found))
        progress.advance(1)
    progress.finish()
    for read in ("train", queries):
        session.refuse_touched(read)
    return arrays, facts


def solved(
    at: AtCheckpoint,
    net: Unprojected,
    gradients: Tensor,
    spec: Mapping[str, Any],
    told: Callable[[Solved], None],
) -> Tensor:
    """Return the gradients times the inverse of the damped curvature, by layer where the run's is.

    Args:
        told: Is told of every system that was solved.
    """
    name = at.session.used_curvature.name
    if name == "identity":
        return gradients
    decision = at.load("decision")[1]
    given = spec["damping"]
    values = {"all": given} if given is not None else dampings(decision)
    damping = net.damping(values, at.scales())
    solver = make("solvers", spec[SOURCE]["solver"], spec[SOURCE]["options"])
    found = torch.zeros_like(gradients)
    at_once = solved_at_once(net.width)
    for part in systems(at, net):
        for rows, solution in zip(
            gradients[:, part].split(at_once), found[:, part].split(at_once), strict=True
        ):
            done = solver.solve(_inside(net, name, part), rows, damping[part])
            told(done)
            solution.copy_(done.solution)
    return found


def solved_at_once(weights: int) -> int:
    """Return how many directions are solved together, by their length."""
    return max(1, _GROUP_ENTRIES // weights)


def systems(at: AtCheckpoint, net: Unprojected) -> list[slice]:
    """Return the weights of each system that is solved: all, or where the curvature is by layer a layer's."""
    joint = at.session.run.method.joint
    return [slice(0, net.width)] if joint else list(net.parts.values())


def _inside(net: Unprojected, curvature: str, part: slice) -> Operator:
    """Return the product with the part of a curvature that couples the weights of one part."""

    def product(vectors: Tensor) -> Tensor:
        whole = vectors.new_zeros(len(vectors), net.width)
        whole[:, part] = vectors
        return net.product(curvature, whole)[:, part]

    return product


def one_by_one(session: Session, net: Unprojected, directions: Tensor) -> bool:
    """Return whether examples have to be run one at a time, as a look at the first of them says."""
    if session.run.method.model.one_by_one:
        return True
    count = min(PLANNING, session.run.train.count)
    batch = session.batch(session.reader("train").read(0, count))
    return net.differs(batch, directions, net.slopes(batch, directions), range(count))


def _refuse_unsolved(done: Solved) -> None:
    if not done.converged:
        raise InputError(
            f"the direction of a query was solved to a residual of {done.residual:.2g} only, in "
            f"{done.steps:,} steps; raise steps or tolerance in score.solver_options (weights of float32 "
            "may allow no less), take another score.solver, or raise the damping"
        )


def _refuse_non_finite(queries: str, at: AtCheckpoint, gradients: Tensor, values: Tensor) -> None:
    bad = ~(torch.isfinite(gradients).all(1) & torch.isfinite(values))
    if bool(bad.any()):
        rows = bad.nonzero().flatten().tolist()
        raise NonFiniteError(
            f"queries {rows[:8]} of {queries!r} gave NaN or infinite gradients at checkpoint {at.number}; "
            "remove them from the query set"
        )
