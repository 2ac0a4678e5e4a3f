"""Per-example gradients of a model, as sums of outer products."""

from streamfluence.capture._engine import Capture, refuse_training
from streamfluence.capture._explicit import Explicit
from streamfluence.capture._indexed import Indexed
from streamfluence.capture._numbers import Precision
from streamfluence.capture._outer import Outer
from streamfluence.capture._plain import eager
from streamfluence.capture._scales import Scales, by_block
from streamfluence.capture._tape import Tape
from streamfluence.capture._trial import refuse_random
from streamfluence.capture.base import Block, Use, Uses, dense_gradient

__all__ = [
    "Block",
    "Capture",
    "Explicit",
    "Indexed",
    "Outer",
    "Precision",
    "Scales",
    "Tape",
    "Use",
    "Uses",
    "by_block",
    "dense_gradient",
    "eager",
    "refuse_random",
    "refuse_training",
]
