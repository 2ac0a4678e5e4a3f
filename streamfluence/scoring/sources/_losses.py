"""Blocks of scores that are not made of stored rows: their columns are the loss and the group alone."""

import numpy as np

from streamfluence.layout import Span
from streamfluence.readouts.base import ScoreBlock
from streamfluence.run.feature import checkpoint_factors
from streamfluence.run.session import Session


def block(
    session: Session, part: Span, scores: np.ndarray, losses: np.ndarray, valid: np.ndarray
) -> ScoreBlock:
    """Return a block; self-influence is not known, since no row is.

    Args:
        scores: Shape ``(example, query)``, float32.
        losses: Shape ``(example,)``, float32; NaN where it is not known.
        valid: Which examples count.
    """
    scores = np.where(valid[:, None], scores, np.float32(0))
    return ScoreBlock(
        start=part.start,
        scores=scores,
        valid=valid,
        self_influence=np.full(len(part), np.nan, np.float32),
        loss=losses,
        group=session.reader("train").groups(part.start, part.stop),
        weights=tuple(checkpoint_factors(session.run.method, session.run.train.count)),
    )
