"""The damping of one checkpoint as job and loss gradients tell it, before features are known."""

from typing import NamedTuple

from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.sketching.damping import resolve


class Implied(NamedTuple):
    """What is known of the damping.

    Attributes:
        value: Of every block; None where each block's spectrum decides.
        rule: In words.
        share_by_weight: Share of it that differs from weight to weight.
    """

    value: float | None
    rule: str
    share_by_weight: float


def implied_damping(at: AtCheckpoint) -> Implied:
    """Return the damping that was given, or that training implies."""
    session, told = at.session, at.session.run.method.curvature
    scales = at.load("scales")[1] if told.by_weight else {}
    mean_square = scales.get("mean_square", 0.0)
    name, curvature = session.used_curvature.name, session.curvature()
    value, rule = resolve(told, name, curvature, mean_square)
    return Implied(value, rule, scales.get("share_by_weight", 0.0))
