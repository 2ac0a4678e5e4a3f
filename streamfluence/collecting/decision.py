"""What the sketch decided for one checkpoint, ready to make rows of gradients on a device."""

from functools import lru_cache

from torch import Tensor

from streamfluence.capture import Uses
from streamfluence.codecs.base import Codec
from streamfluence.layout import plan_stage
from streamfluence.registry import member
from streamfluence.run.decision import preconditioner_of
from streamfluence.run.session import Session
from streamfluence.run.states import load_state, select


class Directions:
    """What the sketch decided for one checkpoint, ready to make rows of gradients on a device.

    Attributes:
        projection: Fitted and loaded.
        scales: Of the coordinates that gradients are projected in.
        preconditioner: What whitens features.
        codec: How a training row is stored.
    """

    def __init__(self, opened: Session, checkpoint: int) -> None:
        arrays, facts = load_state(opened.run, plan_stage(checkpoint), 0)
        self.facts = facts
        self.projection = opened.projection(checkpoint)
        self.projection.load(select(arrays, "projection"))
        self.projection = self.projection.to(opened.device)
        self.scales = opened.scales(checkpoint)
        self.preconditioner = preconditioner_of(arrays, facts).to(opened.device)
        kind = member("codecs", opened.run.method.rows.codec)
        self.codec: Codec = kind(select(arrays, "codec")).to(opened.device)

    def features(self, uses: Uses) -> Tensor:
        """Return the features of gradients over the weights, in the coordinates that rows are in."""
        return self.projection.apply(self.scales.apply(uses))


def directions(opened: Session, checkpoint: int) -> Directions:
    """Return the directions of one checkpoint, loaded once a process."""
    receipt = opened.run.receipt(plan_stage(checkpoint), 0)
    assert receipt is not None, "collect checks that the sketch is there"
    return _directions(opened, checkpoint, receipt.attempt)


@lru_cache(maxsize=2)
def _directions(opened: Session, checkpoint: int, attempt: str) -> Directions:
    return Directions(opened, checkpoint)
