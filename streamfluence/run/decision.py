"""What of a sketch's decision is read without opening the model."""

from streamfluence.codecs.base import Codec
from streamfluence.curvature.base import Factor
from streamfluence.layout import plan_stage
from streamfluence.linalg import State
from streamfluence.registry import member
from streamfluence.run.opened import OpenRun
from streamfluence.run.states import load_state, select


def load_factor(arrays: State) -> Factor:
    """Return the curvature factor among the arrays of a sketch plan."""
    vectors, turns = (
        tuple(found[key] for key in sorted(found, key=int))
        for found in (select(arrays, "vectors"), select(arrays, "turns"))
    )
    return Factor(vectors, arrays["values"], arrays["damping"], arrays["lean"], turns)


def load_codec(run: OpenRun, checkpoint: int) -> tuple[Codec, Factor]:
    """Return codec and factor of one checkpoint without opening the model; scoring needs no more."""
    arrays, _ = load_state(run, plan_stage(checkpoint), 0)
    return member("codecs", run.method.rows.codec)(select(arrays, "codec")), load_factor(arrays)
