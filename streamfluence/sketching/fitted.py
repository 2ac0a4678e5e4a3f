"""The projection of a checkpoint as the passes of its fit left it."""

from streamfluence.layout import sketch_stage
from streamfluence.linalg import State
from streamfluence.projections.base import Projection
from streamfluence.run.session import Session
from streamfluence.run.states import load_state


def fitted(number: int) -> str:
    """Return the stage that commits the projection as it is after pass ``number``, counted from 0."""
    return f"fitted-{number}"


def ready_projection(opened: Session, checkpoint: int) -> Projection:
    """Return the projection of one checkpoint with everything its fit decided."""
    projection = opened.projection(checkpoint)
    if projection.fitted:
        projection.load(projection_arrays(opened, checkpoint))
    return projection.to(opened.device)


def projection_arrays(opened: Session, checkpoint: int) -> State:
    """Return what the last pass of the fit committed; nothing of a projection that is not fitted."""
    projection = opened.projection(checkpoint)
    if not projection.fitted:
        return {}
    last = fitted(len(projection.passes) - 1)
    return load_state(opened.run, sketch_stage(checkpoint, last), 0)[0]


def projection_after(opened: Session, checkpoint: int, number: int) -> Projection:
    """Return the projection as it is after pass ``number``."""
    projection = opened.projection(checkpoint)
    stage = sketch_stage(checkpoint, fitted(number))
    projection.load(load_state(opened.run, stage, 0)[0])
    return projection.to(opened.device)


def block_widths(opened: Session, projection: Projection) -> list[int]:
    """Return how many features each curvature block has."""
    widths = [part.width for part in projection.parts]
    return [sum(widths)] if opened.run.method.joint else widths
