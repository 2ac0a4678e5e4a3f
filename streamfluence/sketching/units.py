"""The work units of the sketch: each reads a few states or one part of the sample, and commits one state.

[squares (sample) -> scales (merge) ->] fit (sample) -> fitted-0 (merge)
[-> refine-1 (sample) -> fitted-1 (merge) ...] -> gram (sample) -> decision (merge)
"""

from streamfluence.features._mean_squares import MeanSquares
from streamfluence.layout import scales_stage, sketch_stage
from streamfluence.linalg import State
from streamfluence.run.session import Session, worker_unit
from streamfluence.run.states import save_state
from streamfluence.sketching.damping import share_by_weight
from streamfluence.sketching.fitted import block_widths, fitted, projection_after, ready_projection
from streamfluence.sketching.sums import Sums
from streamfluence.sketching.sweep import accumulate, merged


@worker_unit
def squares(session: Session, checkpoint: int, task: int) -> None:
    """Sum the squares of loss gradients over one part of the sample."""
    sums = MeanSquares(session.feature(checkpoint).blocks)
    accumulate(session, checkpoint, task, "squares", sums.empty(), None, sums.update)


@worker_unit
def scales(session: Session, checkpoint: int) -> None:
    """Merge the squares and commit the coordinates in which the damping is the same for every weight."""
    sums = MeanSquares(session.feature(checkpoint).blocks)
    state, examples = merged(session, checkpoint, "squares", sums.merge)
    mean_square = sums.mean_square(state, examples)
    share = share_by_weight(session.run.method.curvature, mean_square)
    facts = {"mean_square": mean_square, "share_by_weight": share}
    save_state(session.run, scales_stage(checkpoint), 0, sums.scales(state, share), facts)


@worker_unit
def fit(session: Session, checkpoint: int, task: int) -> None:
    """Feed one part of the sample to the projection's fit."""
    projection = session.projection(checkpoint)
    accumulate(session, checkpoint, task, "fit", projection.empty(), projection.update)


@worker_unit
def basis(session: Session, checkpoint: int) -> None:
    """Merge the parts of the first pass and commit the projection."""
    projection = session.projection(checkpoint)
    state, examples = merged(session, checkpoint, "fit", projection.merge)
    _save_fitted(session, checkpoint, 0, projection.fit(state, examples))


@worker_unit
def refine(session: Session, checkpoint: int, number: int, task: int) -> None:
    """Feed one part of the sample to a later pass of the projection's fit."""
    projection = projection_after(session, checkpoint, number - 1)
    shown = projection.passes[number]
    probes = session.curvature().source == "probes"
    update = None if shown == "rows" else projection.refine_update
    # Loss gradients are shown once, also where they are the curvature's vectors.
    loss = projection.refine_rows if probes or update is None else None
    at_most = projection.most_rows if update is None else None
    stage, state = f"refine-{number}", projection.refine_empty()
    accumulate(session, checkpoint, task, stage, state, update, loss, at_most)


@worker_unit
def choose(session: Session, checkpoint: int, number: int) -> None:
    """Merge the parts of a later pass and commit the projection."""
    projection = projection_after(session, checkpoint, number - 1)
    state, examples = merged(session, checkpoint, f"refine-{number}", projection.merge)
    _save_fitted(session, checkpoint, number, projection.refine(state, examples))


def _save_fitted(session: Session, checkpoint: int, number: int, arrays: State) -> None:
    save_state(session.run, sketch_stage(checkpoint, fitted(number)), 0, arrays, {})


@worker_unit
def gram(session: Session, checkpoint: int, task: int) -> None:
    """Accumulate the curvature, and what rows are, in feature space over one part of the sample."""
    projection = ready_projection(session, checkpoint)
    sums = Sums(session.curvature(), projection, block_widths(session, projection))
    loss = sums.update_rows if sums.moments else None
    accumulate(session, checkpoint, task, "gram", sums.empty(), sums.update, loss=loss)
