"""The work units of the sketch: each reads a few states or one part of the sample, and commits one state.

[squares (sample) -> scales (merge) ->] fit (sample) -> fitted-0 (merge)
[-> refine-1 (sample) -> fitted-1 (merge) ...] -> gram (sample) -> decision (merge)
"""

from streamfluence.features._mean_squares import MeanSquares
from streamfluence.linalg import State
from streamfluence.run.at_checkpoint import AtCheckpoint, checkpoint_unit
from streamfluence.sketching.damping import share_by_weight
from streamfluence.sketching.fitted import block_widths, fitted, projection_after, ready_projection
from streamfluence.sketching.implied import implied_damping
from streamfluence.sketching.sums import Sums
from streamfluence.sketching.sweep import accumulate, merged


@checkpoint_unit
def squares(at: AtCheckpoint, task: int) -> None:
    """Sum the squares of loss gradients over one part of the sample."""
    sums = MeanSquares(at.feature.blocks)
    accumulate(at, task, "squares", sums.empty(), None, sums.update)


@checkpoint_unit
def scales(at: AtCheckpoint) -> None:
    """Merge the squares and commit the coordinates in which the damping is the same for every weight."""
    sums = MeanSquares(at.feature.blocks)
    state, examples = merged(at, "squares", sums.merge)
    mean_square = sums.mean_square(state, examples)
    share = share_by_weight(at.session.run.method.curvature, mean_square)
    facts = {"mean_square": mean_square, "share_by_weight": share}
    at.save("scales", sums.scales(state, share), facts)


@checkpoint_unit
def fit(at: AtCheckpoint, task: int) -> None:
    """Feed one part of the sample to the projection's fit."""
    projection = at.projection()
    accumulate(at, task, "fit", projection.empty(), projection.update)


@checkpoint_unit
def basis(at: AtCheckpoint) -> None:
    """Merge the parts of the first pass and commit the projection."""
    projection = at.projection()
    state, examples = merged(at, "fit", projection.merge)
    _save_fitted(at, 0, projection.fit(state, examples))


@checkpoint_unit
def refine(at: AtCheckpoint, number: int, task: int) -> None:
    """Feed one part of the sample to a later pass of the projection's fit."""
    projection = projection_after(at, number - 1)
    shown = projection.passes[number]
    probes = at.session.curvature().source == "probes"
    update = None if shown == "rows" else projection.refine_update
    # Loss gradients are shown once, also where they are the curvature's vectors.
    loss = projection.refine_rows if probes or update is None else None
    at_most = projection.most_rows if update is None else None
    stage, state = f"refine-{number}", projection.refine_empty()
    accumulate(at, task, stage, state, update, loss, at_most)


@checkpoint_unit
def choose(at: AtCheckpoint, number: int) -> None:
    """Merge the parts of a later pass and commit the projection."""
    projection = projection_after(at, number - 1)
    state, examples = merged(at, f"refine-{number}", projection.merge)
    damping = implied_damping(at).value or 0.0
    _save_fitted(at, number, projection.refine(state, examples, damping))


def _save_fitted(at: AtCheckpoint, number: int, arrays: State) -> None:
    at.save(fitted(number), arrays, {})


@checkpoint_unit
def gram(at: AtCheckpoint, task: int) -> None:
    """Accumulate the curvature, and what rows are, in feature space over one part of the sample."""
    projection = ready_projection(at)
    sums = Sums(at.session.curvature(), projection, block_widths(at.session, projection))
    loss = sums.update_rows if sums.moments else None
    accumulate(at, task, "gram", sums.empty(), sums.update, loss=loss)
