"""The work unit of a ground truth: train once more, measure every query, commit."""

import time
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import nn

from streamfluence.data._batches import map_batch
from streamfluence.evaluation.retraining import Choice, Retraining, Subset
from streamfluence.evaluation.truth.kept import HOLDS, REPEAT, place
from streamfluence.layout import Span, cut
from streamfluence.run.session import Session, worker_unit
from streamfluence.store import RunStore

_KEPT_BYTES = 256 << 20  # query batches up to this size stay on the device between retrainings


@worker_unit
def retrain(
    session: Session,
    example_set: str,
    truth_path: str,
    retraining: Retraining,
    repeat: bool,
) -> dict[str, float]:
    """Train, measure and commit one retraining.

    Args:
        repeat: Train what is there already once more, and commit how far its outcome is off.
    """
    truth = RunStore.open(truth_path, HOLDS)
    stage, partition = (REPEAT, 0) if repeat else place(retraining)
    if truth.receipt(stage, partition) is not None:
        return {}  # another process was faster; training costs more than asking
    kept = retraining.choice.kept(truth.manifest["train"]["count"])
    started = time.monotonic()
    weights = session.task.retrain(kept, retraining.seed)
    trained = time.monotonic()
    outcome = _measurer(session, example_set).outcome(weights)
    facts = {
        "examples": len(kept),
        "non_finite": int(np.count_nonzero(~np.isfinite(outcome))),
        "threads": torch.get_num_threads(),
        "train_seconds": round(trained - started, 4),
        "measure_seconds": round(time.monotonic() - trained, 4),
    }
    if not repeat:
        arrays = {"outcome": outcome, **_chosen(retraining.choice, kept, truth)}
        truth.commit(stage, partition, arrays, {}, facts)
        return facts
    receipt = truth.receipt(*place(retraining))
    assert receipt is not None, "what is repeated was trained before"
    difference = np.abs(outcome - truth.read(receipt, "outcome"))
    facts["largest_difference"] = float(np.nan_to_num(difference).max(initial=0.0))
    truth.commit(REPEAT, 0, {"difference": difference}, {}, facts)
    return facts


class Measurer:
    """A model to put trained weights into, and the queries to measure it on; kept by a process.

    The model is its own, so that the session's keeps the weights of the run's checkpoint.
    Measured in float32 or better whatever the run's precision: this is what scores are judged by.
    """

    def __init__(self, session: Session, example_set: str) -> None:
        self.session, self.example_set = session, example_set
        self.measurement = session.run.example_set(example_set).measurement
        self._batches: list[Any] = []
        self._model = self._new_model()

    def outcome(self, weights: dict[str, torch.Tensor]) -> np.ndarray:
        """Return the measurement of every query with these weights, float64, ``(query,)``."""
        task, measurement = self.session.task, self.measurement
        task.load(self._model, weights)
        pieces = []
        with torch.no_grad():
            for batch in self._batches or self._read():
                found = self.session.measured(
                    partial(task.measure, measurement), self._model, batch, half=False
                )
                pieces.append(found.to(torch.float64).cpu())
        return torch.cat(pieces).numpy()

    def _new_model(self) -> nn.Module:
        session = self.session
        return session.task.model(session.run.checkpoint_path(0)).to(session.device)

    def _read(self) -> list[Any] | Any:
        """Yield the batches of the query set, and keep them if they are small."""
        facts, reader = (
            self.session.run.example_set(self.example_set),
            self.session.reader(self.example_set),
        )
        kept: list[Any] | None = []
        size = 0
        for part in cut(Span(0, facts.count), self.session.run.method.batches.batch_size):
            batch = self.session.batch(reader.read(part.start, part.stop))
            size += _size(batch)
            kept = None if kept is None or size > _KEPT_BYTES else [*kept, batch]
            yield batch
        self._batches = kept or []


@lru_cache(maxsize=2)
def _measurer(session: Session, example_set: str) -> Measurer:
    return Measurer(session, example_set)


def _size(batch: Any) -> int:
    """Return the bytes of the arrays of a batch."""
    sizes: list[int] = []
    map_batch(lambda array: sizes.append(array.nbytes), batch)
    return sum(sizes)


def _chosen(choice: Choice, kept: np.ndarray, truth: RunStore) -> dict[str, np.ndarray]:
    """Return which examples were kept, so that the numbers can be read without the rule."""
    if not isinstance(choice, Subset):
        return {"removed": np.array(choice.rows, np.int64)}
    mask = np.zeros(truth.manifest["train"]["count"], bool)
    mask[kept] = True
    return {"kept_bits": np.packbits(mask)}
