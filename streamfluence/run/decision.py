"""What of a sketch's decision is read without opening the model."""

from collections.abc import Mapping
from typing import Any

from streamfluence.codecs.base import Codec
from streamfluence.layout import decision_stage
from streamfluence.linalg import State
from streamfluence.preconditioners.base import Preconditioner
from streamfluence.registry import member
from streamfluence.run.opened import OpenRun
from streamfluence.run.states import load_state, select


def preconditioner_of(arrays: State, facts: Mapping[str, Any]) -> Preconditioner:
    """Return the preconditioner among the arrays of a sketch's decision, whose facts name its class."""
    kind = member("preconditioners", facts["preconditioner"])
    made: Preconditioner = kind.from_state(select(arrays, "preconditioner"))
    return made


def load_preconditioner(run: OpenRun, checkpoint: int) -> Preconditioner:
    """Return the preconditioner of one checkpoint, and read nothing else of the decision."""
    return preconditioner_of(*load_state(run, decision_stage(checkpoint), 0, "preconditioner/"))


def load_codec(run: OpenRun, checkpoint: int) -> tuple[Codec, Preconditioner]:
    """Return codec and preconditioner of one checkpoint without opening the model, as scoring needs."""
    arrays, facts = load_state(run, decision_stage(checkpoint), 0)
    codec = member("codecs", run.method.rows.codec)(select(arrays, "codec"))
    return codec, preconditioner_of(arrays, facts)
