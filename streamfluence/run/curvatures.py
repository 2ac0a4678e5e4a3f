"""Which curvature a run uses: as asked, or where a task gives only a loss what takes its place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streamfluence.curvature.base import Curvature
from streamfluence.options import make


@dataclass(frozen=True)
class UsedCurvature:
    """A curvature and where it comes from.

    Attributes:
        name: Of the member.
        member: Made with its options.
        without_outputs: Whether it takes the place of one whose vectors need an output Hessian.
    """

    name: str
    member: Curvature
    without_outputs: bool


def used_curvature(name: str, options: Mapping[str, Any], outputs: bool) -> UsedCurvature:
    """Return the curvature that is asked for, or of a task without ``outputs`` its fallback.

    Raises:
        InputError: If there is no such member, or it cannot be made with these options.
    """
    made = make("curvature", name, options)
    if outputs or made.source != "probes" or made.without_outputs is None:
        return UsedCurvature(name, made, False)
    other, its_options = made.without_outputs
    return UsedCurvature(other, make("curvature", other, its_options), True)
