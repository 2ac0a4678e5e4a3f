"""The projection of a checkpoint as the passes of its fit left it."""

from streamfluence.layout import sketch_stage
from streamfluence.linalg import State
from streamfluence.projections.base import Projection
from streamfluence.run.session import Session
from streamfluence.run.states import load_state


def fitted(number: int) -> str:
    """Return the stage that commits the projection as it is after pass ``number``, counted from 0."""
    return f"fitted-{number}"


def ready_projection(session: Session, checkpoint: int) -> Projection:
    """Return the projection of one checkpoint with everything its fit decided."""
    projection = session.projection(checkpoint)
    if projection.fitted:
        projection.load(projection_arrays(session, checkpoint))
    return projection.to(session.device)


def projection_arrays(session: Session, checkpoint: int) -> State:
    """Return what the last pass of the fit committed; nothing of a projection that is not fitted."""
    projection = session.projection(checkpoint)
    if not projection.fitted:
        return {}
    last = fitted(len(projection.passes) - 1)
    return load_state(session.run, sketch_stage(checkpoint, last), 0)[0]


def projection_after(session: Session, checkpoint: int, number: int) -> Projection:
    """Return the projection as it is after pass ``number``."""
    projection = session.projection(checkpoint)
    stage = sketch_stage(checkpoint, fitted(number))
    projection.load(load_state(session.run, stage, 0)[0])
    return projection.to(session.device)


def block_widths(session: Session, projection: Projection) -> list[int]:
    """Return how many features each curvature block has."""
    widths = [part.width for part in projection.parts]
    return [sum(widths)] if session.run.method.joint else widths
