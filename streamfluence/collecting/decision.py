"""What the sketch decided for one checkpoint, ready to make rows of gradients on a device."""

from functools import lru_cache

from torch import Tensor

from streamfluence.capture import Uses
from streamfluence.codecs.base import Codec
from streamfluence.layout import decision_stage
from streamfluence.registry import member
from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.run.decision import preconditioner_of
from streamfluence.run.states import select


class Decision:
    """What the sketch decided for one checkpoint, ready to make rows of gradients on a device.

    Attributes:
        at: The checkpoint.
        projection: Fitted and loaded.
        scales: Of the coordinates that gradients are projected in.
        preconditioner: What whitens features.
        codec: How a training row is stored.
    """

    def __init__(self, at: AtCheckpoint) -> None:
        self.at, session = at, at.session
        arrays, self.facts = at.load("decision")
        self.projection = at.projection()
        self.projection.load(select(arrays, "projection"))
        self.projection = self.projection.to(session.device)
        self.scales = at.scales()
        self.preconditioner = preconditioner_of(arrays, self.facts).to(session.device)
        kind = member("codecs", session.run.method.rows.codec)
        self.codec: Codec = kind(select(arrays, "codec")).to(session.device)

    def features(self, uses: Uses) -> Tensor:
        """Return the features of gradients over the weights, in the coordinates that rows are in."""
        return self.projection.apply(self.scales.apply(uses))


def decision_of(at: AtCheckpoint) -> Decision:
    """Return the directions of one checkpoint, loaded once a process."""
    receipt = at.session.run.receipt(decision_stage(at.number), 0)
    assert receipt is not None, "collect checks that the sketch is there"
    return _decision(at, receipt.attempt)


@lru_cache(maxsize=2)
def _decision(at: AtCheckpoint, attempt: str) -> Decision:
    return Decision(at)
