"""The sample the sketch is made from: seeded, drawn over the whole training set, cut into fixed tasks.

Tasks and batches are cut by the manifest alone, so the sums come out with the
same bits however many workers share them.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamfluence.data._batches import select_batch
from streamfluence.data._prefetch import prefetch
from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.run.sample import finite_examples, sample_rows
from streamfluence.run.session import Session

TASKS = 8  # a task's state can be large (squares of layer widths), so there are few
BATCHES_PER_TASK = 4  # and none so short that writing its state takes longer than making it


def sample_tasks(session: Session) -> int:
    """Return into how many tasks the sample is cut."""
    batches = -(-len(sample_rows(session)) // session.run.method.batches.batch_size)
    return min(TASKS, -(-batches // BATCHES_PER_TASK))


def sample_batches(
    at: AtCheckpoint, task: int, at_most: int | None = None
) -> Iterator[tuple[Tensor, Any]]:
    """Yield ``(rows, batch)`` of one task on the device, examples of non-finite loss left out.

    Args:
        at_most: Examples of the whole sample, evenly over it; None means all.

    Raises:
        NonFiniteError: If a whole batch is NaN or infinite.
    """
    session = at.session
    rows, size = sample_rows(session), session.run.method.batches.batch_size
    batches = np.split(rows, range(size, len(rows), size))
    chosen = torch.from_numpy(_evenly(rows, at_most or len(rows)))
    mine = np.array_split(np.arange(len(batches)), sample_tasks(session))[task]
    reader = session.reader("train")
    for number, host_batch in zip(
        mine, prefetch(reader.take(batches[i]) for i in mine), strict=True
    ):
        ids = torch.from_numpy(batches[number])
        ids, batch = finite_examples(at, ids, session.batch(host_batch))
        wanted = torch.isin(ids, chosen)
        if bool(wanted.all()):
            yield ids, batch
        elif bool(wanted.any()):
            yield ids[wanted], select_batch(batch, wanted.nonzero().squeeze(1))


def _evenly(rows: np.ndarray, count: int) -> np.ndarray:
    """Return at most ``count`` of the rows, at even distances."""
    if count >= len(rows):
        return rows
    return rows[np.arange(count) * len(rows) // count]
