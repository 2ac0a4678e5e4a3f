"""The projection of a checkpoint as the passes of its fit left it."""

from streamfluence.linalg import State
from streamfluence.projections.base import Projection
from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.run.session import Session


def fitted(number: int) -> str:
    """Return the stage that commits the projection as it is after pass ``number``, counted from 0."""
    return f"fitted-{number}"


def ready_projection(at: AtCheckpoint) -> Projection:
    """Return the projection of one checkpoint with everything its fit decided."""
    projection = at.projection()
    if projection.fitted:
        projection.load(projection_arrays(at))
    return projection.to(at.session.device)


def projection_arrays(at: AtCheckpoint) -> State:
    """Return what the last pass of the fit committed; nothing of a projection that is not fitted."""
    projection = at.projection()
    if not projection.fitted:
        return {}
    last = fitted(len(projection.passes) - 1)
    return at.load(last)[0]


def projection_after(at: AtCheckpoint, number: int) -> Projection:
    """Return the projection as it is after pass ``number``."""
    projection = at.projection()
    projection.load(at.load(fitted(number))[0])
    return projection.to(at.session.device)


def block_widths(session: Session, projection: Projection) -> list[int]:
    """Return how many features each curvature block has."""
    widths = [part.width for part in projection.parts]
    return [sum(widths)] if session.run.method.joint else widths
