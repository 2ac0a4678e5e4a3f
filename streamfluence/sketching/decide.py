"""The last step of a sketch: factor the curvature, settle damping and codec, commit what collect needs."""

from typing import Any

from streamfluence.curvature.base import Factor
from streamfluence.layout import plan_stage, scales_stage, sketch_stage
from streamfluence.options import make
from streamfluence.projections.base import Projection
from streamfluence.registry import member
from streamfluence.run.rests_on import scales_digest
from streamfluence.run.session import Session, session
from streamfluence.run.states import load_state, save_state, select
from streamfluence.sketching.damping import resolve
from streamfluence.sketching.fitted import block_widths, projection_arrays, ready_projection
from streamfluence.sketching.sums import Sums
from streamfluence.sketching.sweep import merged


def decide(run_path: str, device: str, checkpoint: int) -> None:
    """Factor the curvature, settle the damping and the codec, and commit what collect needs."""
    opened = session(run_path, device)
    projection = ready_projection(opened, checkpoint).to("cpu")
    curvature, method = opened.curvature(), opened.run.method
    merge = Sums(curvature, projection, block_widths(opened, projection)).merge
    state, examples = merged(opened, checkpoint, "gram", merge)
    sizes = _sizes(opened, projection)
    n_weights = sum(block.size for block in projection.blocks)
    by_weight = method.curvature.by_weight
    scale_facts = load_state(opened.run, scales_stage(checkpoint), 0)[1] if by_weight else {}
    damping, rule = resolve(
        method.curvature,
        opened.curvature_name(),
        curvature,
        scale_facts.get("mean_square", 0.0),
    )
    energy = projection.facts().get("energy")
    if damping is None and energy and sizes == [n_weights]:
        # Of all the curvature there is: mixed directions hold a part of it that says little.
        damping = curvature.default_scale * energy / n_weights
    sums = select(state, "curvature")
    factor = curvature.factor(sums, examples, damping, sizes)
    rows = list(select(state, "rows").values())
    if rows:
        factor, energies = factor.turned([gram / examples for gram in rows])
    else:
        energies = curvature.energies(sums, factor, examples)
    codec_kind = member("codecs", method.rows.codec)
    budget, seed = method.rows.bytes or None, method.sketch.seed
    codec_arrays = make("codecs", method.rows.codec, method.rows.options, energies, budget, seed)
    arrays = {f"codec/{key}": value for key, value in codec_arrays.items()}
    arrays |= {
        f"projection/{key}": value for key, value in projection_arrays(opened, checkpoint).items()
    }
    arrays |= {f"vectors/{i}": basis for i, basis in enumerate(factor.vectors)}
    arrays |= {f"turns/{i}": turn for i, turn in enumerate(factor.turns)}
    spectra = {"values": factor.values, "damping": factor.damping, "lean": factor.lean}
    arrays |= {**spectra, "energies": energies}
    sampled = load_state(opened.run, sketch_stage(checkpoint, "gram"), 0)[1]
    facts = {
        "curvature": opened.curvature_name(),
        "damping_rule": rule,
        "damping_share_by_weight": scale_facts.get("share_by_weight", 0.0),
        "sample_examples": examples,
        "directions": sum(part.width for part in projection.parts),
        **{key: sampled[key] for key in ("vectors", "vectors_an_example")},
        "projection": projection.facts(),
        "codec": codec_kind(codec_arrays).facts(),
        "blocks": _block_facts(opened, projection, factor),
    }
    rests_on = {"scales": scales_digest(opened.run, checkpoint)}
    save_state(opened.run, plan_stage(checkpoint), 0, arrays, facts, rests_on)


def _sizes(opened: Session, projection: Projection) -> list[int]:
    """Return how many weights each curvature block stands for."""
    sizes = {block.name: block.size for block in projection.blocks}
    everything = sum(sizes.values())  # a part that is no layer lies over all of them
    if opened.run.method.curvature.blocks == "joint":
        return [everything]
    return [sizes.get(part.name, everything) for part in projection.parts]


def _block_facts(opened: Session, projection: Projection, factor: Factor) -> list[dict[str, Any]]:
    """Return width, damping and effective dimension of every curvature block."""
    if not factor.vectors:
        return []
    joint = opened.run.method.curvature.blocks == "joint"
    names = ["joint"] if joint else [part.name for part in projection.parts]
    widths = [len(basis) for basis in factor.vectors]
    dampings = [float(block[0]) for block in factor.damping.split(widths)]
    means = [float(block.mean()) for block in factor.values.split(widths)]
    return [
        {"name": n, "width": w, "damping": d, "mean_eigenvalue": m, "effective_dimension": e}
        for n, w, d, m, e in zip(
            names, widths, dampings, means, factor.effective_dimension(), strict=True
        )
    ]
