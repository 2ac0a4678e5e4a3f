"""The work unit of collect: the rows of some partitions of one example set at one checkpoint.

Reading runs ahead in one thread, committing behind in another; in between a
batch goes to the device, and only finished bytes come back from it.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamfluence.codecs.base import Codec, shares
from streamfluence.collecting.decision import Decision, decision_of
from streamfluence.collecting.inputs_before import refuse_other_input
from streamfluence.columns import (
    EXAMPLE_ID,
    FLAGS,
    GRAD_NORM,
    GROUP,
    LOSS,
    ROWS,
    SCALE,
    SELF_INFLUENCE,
)
from streamfluence.data._batches import input_digest
from streamfluence.data._prefetch import prefetch
from streamfluence.features.base import Feature
from streamfluence.layout import Span, cut
from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.run.rows import StoredRows
from streamfluence.run.session import Session, worker_unit
from streamfluence.store.text import TEXT, encode_ids

CODED_AT_ONCE = 4096  # rows on a GPU
PROVED = 256  # one batch in so many is proved, and as large a share of a partition's first
READ_ALONE = 2  # examples of a partition that are read by themselves, too, where rows may be padded
QUARANTINED = 1  # flag of a row that was NaN or infinite: stored as zeros, never scored


@worker_unit
def collect(
    session: Session, example_set: str, checkpoint: int, first: int, stop: int
) -> dict[str, int]:
    """Collect and commit partitions ``first`` to ``stop``; return counts for the progress report."""
    decision = decision_of(AtCheckpoint(session, checkpoint))
    rows = StoredRows(session.run, example_set, checkpoint)
    spans = rows.examples.spans
    session.refresh(example_set)
    done = {"examples": 0, "non_finite": 0}
    pending: Future[None] | None = None
    with ThreadPoolExecutor(1) as committer:
        for partition in range(first, stop):
            span = spans[partition]
            arrays, notes = partition_arrays(decision, example_set, span)
            session.refuse_touched(example_set)
            refuse_other_input(rows, partition, notes["input_crc32c"])
            notes |= rows.bases()[partition]
            if pending is not None:
                pending.result()  # at most one partition waits to be written
            pending = committer.submit(commit, rows, partition, span, arrays, notes)
            done["examples"] += len(span)
            done["non_finite"] += notes["non_finite"]
    if pending is not None:
        pending.result()
    return done


@dataclass
class _Columns:
    """Arrays of one partition, batch by batch."""

    pieces: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, arrays: Mapping[str, Any]) -> None:
        for name, array in arrays.items():
            if array is not None:
                self.pieces.setdefault(name, []).append(array)

    def finish(self) -> dict[str, np.ndarray]:
        """Return whole arrays on the host; device tensors cross here, once a partition."""
        return {name: _whole(pieces) for name, pieces in self.pieces.items()}


class _Coded:
    """Rows on their way to columns of codes: batch by batch on a CPU, by thousands on a GPU.

    There a codec is hundreds of short kernels, and its check of the rows waits for all before.

    Attributes:
        shares: What the codec did to the first rows, a sample of all; empty before.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._waiting: list[Tensor] = []
        self.shares: dict[str, float] = {}

    def add(self, rows: Tensor, columns: _Columns) -> None:
        """Take the rows of a batch; ``columns`` get codes now or later, in the same order."""
        self._waiting.append(rows)
        if not rows.is_cuda or sum(map(len, self._waiting)) >= CODED_AT_ONCE:
            self.flush(columns)

    def flush(self, columns: _Columns) -> None:
        """Encode what is waiting."""
        if not self._waiting:
            return
        rows = self._waiting[0] if len(self._waiting) == 1 else torch.cat(self._waiting)
        encoded = self._codec.encode(rows)
        self.shares = self.shares or shares(self._codec, rows, encoded)
        columns.add({ROWS: encoded.codes, SCALE: encoded.scale})
        self._waiting = []


def partition_arrays(
    decision: Decision, example_set: str, span: Span
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays of one partition and the facts for its receipt."""
    session, feature = decision.at.session, decision.at.feature
    started, columns, digest = time.monotonic(), _Columns(), 0
    coded = _Coded(decision.codec)
    alone = feature.one_by_one
    measurement = session.run.example_set(example_set).measurement
    for part, host_batch in _read(session, example_set, span):
        digest = input_digest(host_batch, digest)
        batch = session.batch(host_batch)
        prove = proved(part, span)
        whitened, facts = measured_rows(decision, feature, batch, measurement, prove)
        if part.start == span.start and not feature.gradients:
            for place in prove[:READ_ALONE]:
                one = session.batch(session.reader(example_set).take([part.start + place]))
                feature.refuse_padded(batch, place, one, measurement)
        if example_set == "train":
            coded.add(decision.preconditioner.for_rows(whitened), columns)
            columns.add(facts)
        else:
            columns.add({ROWS: decision.preconditioner.for_queries(whitened), **facts})
        columns.add(_identities(session, example_set, part))
    coded.flush(columns)
    arrays = columns.finish()
    arrays[EXAMPLE_ID] = encode_ids(arrays[EXAMPLE_ID])
    notes = {
        "input_crc32c": digest,
        "non_finite": int(np.count_nonzero(arrays[FLAGS] & QUARANTINED)),
        "stored": coded.shares,
        "one_by_one": feature.one_by_one - alone,
        "seconds": round(time.monotonic() - started, 3),
    }
    return arrays, notes


def _read(session: Session, example_set: str, span: Span) -> Iterator[tuple[Span, Any]]:
    """Yield the batches of a partition, read one ahead of the computation."""
    reader = session.reader(example_set)
    parts = list(cut(span, session.run.method.batches.batch_size))
    return zip(parts, prefetch(reader.read(p.start, p.stop) for p in parts), strict=True)


def proved(part: Span, span: Span) -> list[int]:
    """Return the places in a batch whose rows are compared with plain autograd.

    Of the first batch of every partition as many as are 1/256 of it, and all of one batch in 256,
    which depends on where the batch lies: together 1/128 of the examples, each at the price of
    about one forward and backward pass.
    """
    random = np.random.default_rng([part.start, len(part)])
    if part.start == span.start:
        few = max(2, -(-len(span) // PROVED))
        return [int(place) for place in random.permutation(len(part))[:few]]
    return random.permutation(len(part)).tolist() if random.integers(PROVED) == 0 else []


def measured_rows(
    decision: Decision,
    feature: Feature,
    batch: Any,
    measurement: str,
    prove: Sequence[int] = (),
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the whitened rows of one batch and what is stored beside them, still on the device."""
    measured = feature.measure(batch, measurement, prove)
    found = decision.features(measured.uses).to(torch.float32)
    finite = torch.isfinite(found).all(1) & torch.isfinite(measured.value)
    rows = torch.where(finite[:, None], found, 0.0)
    whitened = decision.preconditioner.whiten(rows)
    # Stored sums over queries and thresholds are taken in float32, so a square that overflows is no row.
    self_influence = whitened.square().sum(1)
    finite &= torch.isfinite(self_influence)
    whitened = torch.where(finite[:, None], whitened, 0.0)
    stored = {
        FLAGS: (~finite).to(torch.uint8) * QUARANTINED,
        LOSS: measured.value,
        GRAD_NORM: rows.square().sum(1).sqrt(),
        SELF_INFLUENCE: torch.where(finite, self_influence, 0.0),
    }
    return whitened, stored


def _identities(session: Session, example_set: str, part: Span) -> dict[str, Any]:
    reader = session.reader(example_set)
    ids = reader.example_ids(part.start, part.stop)
    return {
        EXAMPLE_ID: np.arange(part.start, part.stop) if ids is None else ids,
        GROUP: reader.groups(part.start, part.stop),
    }


def commit(
    rows: StoredRows,
    partition: int,
    span: Span,
    arrays: dict[str, np.ndarray],
    notes: dict[str, Any],
) -> None:
    """Commit the rows of one partition."""
    run, stage = rows.run, rows.stage
    # For readers that know Zarr but not runs: bytes of text look like any other numbers.
    text = {EXAMPLE_ID: TEXT} if arrays[EXAMPLE_ID].ndim == 2 else {}
    compressors = {ROWS: run.method.rows.compressor}
    run.commit(stage, partition, arrays, {"stage": stage, **text}, notes, compressors, span=span)


def _whole(pieces: list[Any]) -> np.ndarray:
    if isinstance(pieces[0], Tensor):
        return torch.cat(pieces).cpu().numpy()
    return np.concatenate(pieces)
