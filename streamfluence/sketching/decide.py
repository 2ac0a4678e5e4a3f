"""The last step of a sketch, its decision: damping, preconditioner and codec, which collect needs."""

from typing import Any

from torch import Tensor

from streamfluence.curvature.base import Curvature
from streamfluence.linalg import State
from streamfluence.options import make
from streamfluence.preconditioners.base import Preconditioner
from streamfluence.projections.base import Projection
from streamfluence.registry import member
from streamfluence.run.at_checkpoint import AtCheckpoint, checkpoint_unit
from streamfluence.run.rests_on import scales_digest
from streamfluence.run.session import Session
from streamfluence.run.states import select
from streamfluence.sketching.fitted import block_widths, projection_arrays, ready_projection
from streamfluence.sketching.implied import implied_damping
from streamfluence.sketching.sums import Sums
from streamfluence.sketching.sweep import merged


@checkpoint_unit
def decide(at: AtCheckpoint) -> None:
    """Settle damping, preconditioner and codec of a checkpoint, and commit what collect needs."""
    session = at.session
    projection, curvature = ready_projection(at).to("cpu"), session.curvature()
    sums = Sums(curvature, projection, block_widths(session, projection))
    state, examples = merged(at, "gram", sums.merge)
    damping, damping_facts = _damping(at, curvature, projection)
    preconditioner, energies = _preconditioner(
        sums, state, examples, damping, _sizes(session, projection)
    )
    codec, codec_facts = _codec(session, energies)
    arrays = {
        **_under("codec", codec),
        **_under("projection", projection_arrays(at)),
        **_under("preconditioner", preconditioner.state()),
        "energies": energies,
    }
    facts = {
        **damping_facts,
        **_sample_facts(at, examples),
        **_curvature_facts(session, projection, preconditioner),
        "projection": projection.facts(),
        "codec": codec_facts,
    }
    rests_on = {"scales": scales_digest(session.run, at.number)}
    at.save("decision", arrays, facts, rests_on=rests_on)


def _damping(
    at: AtCheckpoint, curvature: Curvature, projection: Projection
) -> tuple[float | None, dict[str, Any]]:
    """Return the damping of every block, None for that of each block's own spectrum, and its rule."""
    implied = implied_damping(at)
    damping, energy = implied.value, projection.facts().get("energy")
    n_weights = sum(block.size for block in projection.blocks)
    if damping is None and energy and _sizes(at.session, projection) == [n_weights]:
        # Of all the curvature there is: mixed directions hold a part of it that says little.
        damping = curvature.default_scale * energy / n_weights
    return damping, {
        "damping_rule": implied.rule,
        "damping_share_by_weight": implied.share_by_weight,
    }


def _preconditioner(
    sums: Sums, state: State, examples: int, damping: float | None, sizes: list[int]
) -> tuple[Preconditioner, Tensor]:
    """Return what whitens rows, and the energy of each coordinate in which they are stored."""
    of_curvature = select(state, "curvature")
    factor = sums.curvature.factor(of_curvature, examples, damping, sizes)
    moments = sums.row_moments(state, examples)
    if moments:
        return factor.half_whitened(moments)
    return factor, sums.curvature.energies(of_curvature, factor, examples)


def _codec(session: Session, energies: Tensor) -> tuple[State, dict[str, Any]]:
    """Return the arrays of the codec that is best for coordinates of these energies, and its facts."""
    rows = session.run.method.rows
    kind = member("codecs", rows.codec)
    seed = session.run.method.sketch.seed
    arrays = make("codecs", rows.codec, rows.options, energies, rows.bytes or None, seed)
    return arrays, kind(arrays).facts()


def _sizes(session: Session, projection: Projection) -> list[int]:
    """Return how many weights each curvature block stands for."""
    sizes = {block.name: block.size for block in projection.blocks}
    everything = sum(sizes.values())  # a part that is no layer lies over all of them
    if session.run.method.joint:
        return [everything]
    return [sizes.get(part.name, everything) for part in projection.parts]


def _sample_facts(at: AtCheckpoint, examples: int) -> dict[str, Any]:
    """Return what the curvature was made from."""
    sampled = at.load("gram")[1]
    made = {key: sampled[key] for key in ("vectors", "vectors_an_example")}
    return {"sample_examples": examples, **made}


def _curvature_facts(
    session: Session, projection: Projection, preconditioner: Preconditioner
) -> dict[str, Any]:
    """Return which curvature it is, and of every block width, damping and effective dimension."""
    names = ["joint"] if session.run.method.joint else [part.name for part in projection.parts]
    return {
        "curvature": session.used_curvature.name,
        "without_outputs": session.used_curvature.without_outputs,
        "preconditioner": preconditioner.name,
        "couples": preconditioner.couples,
        "directions": sum(part.width for part in projection.parts),
        "blocks": preconditioner.facts(names),
    }


def _under(prefix: str, state: State) -> State:
    return {f"{prefix}/{key}": value for key, value in state.items()}
