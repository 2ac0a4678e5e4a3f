"""Which training examples a curvature is made of: seeded, drawn over the whole training set."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamfluence.data._batches import batch_length, select_batch
from streamfluence.errors import NonFiniteError
from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.run.session import Session


def sample_rows(session: Session) -> np.ndarray:
    """Return the sorted global rows of the sample, int64."""
    return sample_of(session, session.run.method.sketch.examples)


def sample_of(session: Session, wanted: int) -> np.ndarray:
    """Return the rows of the sample that a sketch of ``wanted`` examples would take."""
    count = session.run.train.count
    if wanted >= count:
        return np.arange(count)
    generator = np.random.default_rng(session.run.method.sketch.seed)
    return np.sort(generator.choice(count, wanted, replace=False, shuffle=False))


def finite_examples(at: AtCheckpoint, ids: Tensor, batch: Any) -> tuple[Tensor, Any]:
    """Leave out examples whose loss is not finite: one would spoil every sum."""
    session = at.session
    loss = session.measured(session.task.training_loss, at.model, batch).detach()
    finite = torch.isfinite(loss)
    if bool(finite.all()):
        return ids, batch
    if not bool(finite.any()):
        raise NonFiniteError(
            f"all {batch_length(batch)} examples of a sample batch (rows {int(ids[0])} to {int(ids[-1])}) "
            f"have a NaN or infinite loss; check the data and the model's precision"
        )
    keep = finite.nonzero().squeeze(1)
    return ids[keep.cpu()], select_batch(batch, keep)
