"""What the sketch decided for one checkpoint, ready to make rows of gradients on a device."""

from functools import lru_cache

from torch import Tensor

from streamfluence.capture import Uses
from streamfluence.codecs.base import Codec
from streamfluence.layout import decision_stage
from streamfluence.registry import member
from streamfluence.run.decision import preconditioner_of
from streamfluence.run.session import Session
from streamfluence.run.states import load_state, select


class Decision:
    """What the sketch decided for one checkpoint, ready to make rows of gradients on a device.

    Attributes:
        projection: Fitted and loaded.
        scales: Of the coordinates that gradients are projected in.
        preconditioner: What whitens features.
        codec: How a training row is stored.
    """

    def __init__(self, session: Session, checkpoint: int) -> None:
        arrays, facts = load_state(session.run, decision_stage(checkpoint), 0)
        self.facts = facts
        self.projection = session.projection(checkpoint)
        self.projection.load(select(arrays, "projection"))
        self.projection = self.projection.to(session.device)
        self.scales = session.scales(checkpoint)
        self.preconditioner = preconditioner_of(arrays, facts).to(session.device)
        kind = member("codecs", session.run.method.rows.codec)
        self.codec: Codec = kind(select(arrays, "codec")).to(session.device)

    def features(self, uses: Uses) -> Tensor:
        """Return the features of gradients over the weights, in the coordinates that rows are in."""
        return self.projection.apply(self.scales.apply(uses))


def decision_of(session: Session, checkpoint: int) -> Decision:
    """Return the directions of one checkpoint, loaded once a process."""
    receipt = session.run.receipt(decision_stage(checkpoint), 0)
    assert receipt is not None, "collect checks that the sketch is there"
    return _decision(session, checkpoint, receipt.attempt)


@lru_cache(maxsize=2)
def _decision(session: Session, checkpoint: int, attempt: str) -> Decision:
    return Decision(session, checkpoint)
