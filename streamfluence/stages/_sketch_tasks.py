"""The work units of the sketch: each reads a few states or one part of the sample, and commits one state.

[squares (sample) -> scales (merge) ->] fit (sample) -> fitted-0 (merge)
[-> refine-1 (sample) -> fitted-1 (merge) ...] -> gram (sample) -> plan (merge)
"""

from functools import partial
from typing import Any

import torch

from streamfluence.capture import Capture
from streamfluence.curvature.base import Factor
from streamfluence.errors import InputError
from streamfluence.features._mean_squares import MeanSquares
from streamfluence.linalg import State
from streamfluence.projections.base import Projection
from streamfluence.registry import member
from streamfluence.stages import _damping
from streamfluence.stages._plausible import plausibility
from streamfluence.stages._rests_on import scales_digest
from streamfluence.stages._sample import finite_examples
from streamfluence.stages._session import (
    Session,
    load_state,
    save_state,
    select,
    session,
)
from streamfluence.stages._sets import plan_stage, scales_stage
from streamfluence.stages._sketch_pass import accumulate, merged
from streamfluence.stages._sketch_sums import Sums


def coverage(run_path: str, device: str, checkpoint: int) -> None:
    """Prove on the first batch that the captured gradients are autograd's, and commit the facts."""
    opened = session(run_path, device)
    capture = opened.capture(checkpoint)
    first = torch.arange(min(8, opened.table("train")["count"]))
    rows = opened.batch(opened.reader("train").read(0, len(first)))
    _, batch = finite_examples(opened, checkpoint, first, rows)
    model = opened.model(checkpoint)
    # Coverage is proved in float32: bfloat16 rounds by more than a missed use would show.
    exact = opened.planned(model, partial(opened.forward_at, False)) if opened.half else capture
    exact.check(batch, opened.task.training_loss)
    facts = {
        "precision_cosine": _precision_cosine(opened, model, batch) if opened.half else None,
        "announcements": list(capture.announcements),
        **_covered(model, capture),
        "plausibility": plausibility(opened, checkpoint),
        "blocks": [
            {"name": b.name, "parameters": list(b.parameters), "size": b.size}
            for b in capture.blocks
        ],
    }
    save_state(opened.store, f"sketch/{checkpoint}/coverage", 0, {}, facts)


def _covered(model: torch.nn.Module, capture: Capture) -> dict[str, Any]:
    """Return how many trainable parameters there are and take part, and the names of the others."""
    trainable = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    covered = {name for block in capture.blocks for name in block.parameters}
    return {
        "trainable_parameters": sum(trainable.values()),
        "covered_parameters": sum(size for name, size in trainable.items() if name in covered),
        "left_out": [name for name in trainable if name not in covered],
    }


def _precision_cosine(opened: Session, model: Any, batch: Any) -> float:
    """Return the cosine between the batch's gradients in bfloat16 and in float32."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    flat = []
    for half in (True, False):
        loss = opened.task.training_loss(opened.forward_at(half, model, batch)).sum()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        flat.append(torch.cat([g.flatten().double() for g in found if g is not None]))
    return float(torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0))


def squares(run_path: str, device: str, checkpoint: int, task: int) -> None:
    """Sum the squares of loss gradients over one part of the sample."""
    opened = session(run_path, device)
    sums = MeanSquares(opened.capture(checkpoint).blocks)
    accumulate(opened, checkpoint, task, "squares", sums.empty(), None, sums.update)


def scales(run_path: str, device: str, checkpoint: int) -> None:
    """Merge the squares and commit the coordinates in which the damping is the same for every weight."""
    opened = session(run_path, device)
    sums = MeanSquares(opened.capture(checkpoint).blocks)
    state, examples = merged(opened, checkpoint, "squares", sums.merge)
    mean_square = sums.mean_square(state, examples)
    share = _damping.share_by_weight(opened.manifest["curvature"], mean_square)
    facts = {"mean_square": mean_square, "share_by_weight": share}
    save_state(opened.store, scales_stage(checkpoint), 0, sums.scales(state, share), facts)


def fit(run_path: str, device: str, checkpoint: int, task: int) -> None:
    """Feed one part of the sample to the projection's fit."""
    opened = session(run_path, device)
    projection = opened.projection(checkpoint)
    accumulate(opened, checkpoint, task, "fit", projection.empty(), projection.update)


def fitted(number: int) -> str:
    """Return the stage that commits the projection as it is after pass ``number``, counted from 0."""
    return f"fitted-{number}"


def basis(run_path: str, device: str, checkpoint: int) -> None:
    """Merge the parts of the first pass and commit the projection."""
    opened = session(run_path, device)
    projection = opened.projection(checkpoint)
    state, examples = merged(opened, checkpoint, "fit", projection.merge)
    _save_fitted(opened, checkpoint, 0, projection.fit(state, examples))


def refine(run_path: str, device: str, checkpoint: int, number: int, task: int) -> None:
    """Feed one part of the sample to a later pass of the projection's fit."""
    opened = session(run_path, device)
    projection = _after(opened, checkpoint, number - 1)
    shown = projection.passes[number]
    probes = opened.curvature().source == "probes"
    update = None if shown == "rows" else projection.refine_update
    # Loss gradients are shown once, also where they are the curvature's vectors.
    loss = projection.refine_rows if probes or update is None else None
    at_most = projection.most_rows if update is None else None
    stage, state = f"refine-{number}", projection.refine_empty()
    accumulate(opened, checkpoint, task, stage, state, update, loss, at_most)


def choose(run_path: str, device: str, checkpoint: int, number: int) -> None:
    """Merge the parts of a later pass and commit the projection."""
    opened = session(run_path, device)
    projection = _after(opened, checkpoint, number - 1)
    state, examples = merged(opened, checkpoint, f"refine-{number}", projection.merge)
    _save_fitted(opened, checkpoint, number, projection.refine(state, examples))


def _save_fitted(opened: Session, checkpoint: int, number: int, arrays: State) -> None:
    save_state(opened.store, f"sketch/{checkpoint}/{fitted(number)}", 0, arrays, {})


def gram(run_path: str, device: str, checkpoint: int, task: int) -> None:
    """Accumulate the curvature, and what rows are, in feature space over one part of the sample."""
    opened = session(run_path, device)
    projection = ready_projection(opened, checkpoint)
    sums = Sums(opened.curvature(), projection, block_widths(opened, projection))
    loss = sums.update_rows if opened.curvature().source == "probes" else None
    accumulate(opened, checkpoint, task, "gram", sums.empty(), sums.update, loss=loss)


def plan(run_path: str, device: str, checkpoint: int) -> None:
    """Factor the curvature, settle the damping and the codec, and commit what collect needs."""
    opened = session(run_path, device)
    projection = ready_projection(opened, checkpoint).to("cpu")
    curvature, manifest = opened.curvature(), opened.manifest
    merge = Sums(curvature, projection, block_widths(opened, projection)).merge
    state, examples = merged(opened, checkpoint, "gram", merge)
    sizes = _sizes(opened, projection)
    n_weights = sum(block.size for block in projection.blocks)
    by_weight = _damping.by_weight(manifest["curvature"])
    scale_facts = load_state(opened.store, scales_stage(checkpoint), 0)[1] if by_weight else {}
    damping, rule = _damping.resolve(
        manifest["curvature"],
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
    codec_kind = member("codecs", manifest["rows"]["codec"])
    codec_arrays = codec_kind.plan(
        energies,
        manifest["rows"]["bytes"] or None,
        manifest["sketch"]["seed"],
        **_codec_options(opened),
    )
    arrays = {f"codec/{key}": value for key, value in codec_arrays.items()}
    arrays |= {
        f"projection/{key}": value for key, value in _projection_arrays(opened, checkpoint).items()
    }
    arrays |= {f"vectors/{i}": basis for i, basis in enumerate(factor.vectors)}
    arrays |= {f"turns/{i}": turn for i, turn in enumerate(factor.turns)}
    spectra = {"values": factor.values, "damping": factor.damping, "lean": factor.lean}
    arrays |= {**spectra, "energies": energies}
    sampled = load_state(opened.store, f"sketch/{checkpoint}/gram", 0)[1]
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
    rests_on = {"scales": scales_digest(opened.store, checkpoint)}
    save_state(opened.store, plan_stage(checkpoint), 0, arrays, facts, rests_on)


def ready_projection(opened: Session, checkpoint: int) -> Projection:
    """Return the projection of one checkpoint with everything its fit decided."""
    projection = opened.projection(checkpoint)
    if projection.fitted:
        projection.load(_projection_arrays(opened, checkpoint))
    return projection.to(opened.device)


def _projection_arrays(opened: Session, checkpoint: int) -> State:
    projection = opened.projection(checkpoint)
    if not projection.fitted:
        return {}
    last = fitted(len(projection.passes) - 1)
    return load_state(opened.store, f"sketch/{checkpoint}/{last}", 0)[0]


def _after(opened: Session, checkpoint: int, number: int) -> Projection:
    """Return the projection as it is after pass ``number``."""
    projection = opened.projection(checkpoint)
    stage = f"sketch/{checkpoint}/{fitted(number)}"
    projection.load(load_state(opened.store, stage, 0)[0])
    return projection.to(opened.device)


def block_widths(opened: Session, projection: Projection) -> list[int]:
    """Return how many features each curvature block has."""
    widths = [part.width for part in projection.parts]
    return [sum(widths)] if opened.manifest["curvature"]["blocks"] == "joint" else widths


def _sizes(opened: Session, projection: Projection) -> list[int]:
    """Return how many weights each curvature block stands for."""
    sizes = {block.name: block.size for block in projection.blocks}
    everything = sum(sizes.values())  # a part that is no layer lies over all of them
    if opened.manifest["curvature"]["blocks"] == "joint":
        return [everything]
    return [sizes.get(part.name, everything) for part in projection.parts]


def _codec_options(opened: Session) -> dict[str, Any]:
    rows = opened.manifest["rows"]
    options = {key: rows[key] for key in ("width", "bits") if rows[key] is not None}
    if options and rows["codec"] != "bands":
        raise InputError(
            f"rows.{next(iter(options))} belongs to the codec 'bands', not {rows['codec']!r}"
        )
    return options


def _block_facts(opened: Session, projection: Projection, factor: Factor) -> list[dict[str, Any]]:
    """Return width, damping and effective dimension of every curvature block."""
    if not factor.vectors:
        return []
    joint = opened.manifest["curvature"]["blocks"] == "joint"
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
