"""A few examples and queries of a run, and temporary runs of other settings on them.

A pilot run has the manifest of the run it is made from, with a smaller sample
and the settings that are asked for. Its curvature is sketched for real; its rows
are made in memory, by the code that collects.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamfluence.codecs.base import Encoded, shares
from streamfluence.collecting.decision import Decision
from streamfluence.collecting.units import measured_rows
from streamfluence.columns import FLAGS, ROWS, SCALE
from streamfluence.data import open_reader
from streamfluence.execution import Execution
from streamfluence.layout import TRAINING_LOSS
from streamfluence.run.at_checkpoint import at_checkpoints
from streamfluence.run.feature import checkpoint_factors
from streamfluence.run.identity import identity
from streamfluence.run.opened import OpenRun
from streamfluence.run.rows import StoredRows, stored_rows
from streamfluence.run.sample import sample_of
from streamfluence.run.session import Session, open_session
from streamfluence.run.sets import named_query_set
from streamfluence.scoring.queries import Queries
from streamfluence.sketching.reuse import reuse_sketch
from streamfluence.sketching.steps import sketch_missing


@dataclass(frozen=True)
class Pilot:
    """The examples and queries that are compared.

    Attributes:
        rows, queries: Global rows of training examples and queries, sorted int64.
        batches, query_batches: The same, as batches on the device.
        measurement: Of the queries.
    """

    session: Session
    example_set: str
    rows: np.ndarray
    queries: np.ndarray
    batches: list[Any]
    query_batches: list[Any]
    measurement: str

    @property
    def device(self) -> str:
        return str(self.session.device)


@dataclass
class PilotScores:
    """Scores of a pilot.

    Attributes:
        scores: Shape ``(example, query)``, float64, 1/n included, summed over checkpoints.
        stored: What the codec did to the rows, summed over checkpoints; see ``shares``.
    """

    scores: np.ndarray
    stored: dict[str, float] = field(default_factory=dict)

    def add(self, scores: Tensor, stored: Mapping[str, float]) -> None:
        """Add one batch's or checkpoint's worth of facts to the sums."""
        self.scores = self.scores + scores.double().cpu().numpy()
        for key, value in stored.items():
            self.stored[key] = self.stored.get(key, 0.0) + value


def choose_pilot(
    session: Session, n_examples: int, example_set: str | None, n_queries: int
) -> Pilot:
    """Return a pilot: the sketch sample of a run of ``n_examples``, and queries evenly spread.

    Raises:
        InputError: If there is no such query set.
        IncompleteError: If rows are missing.
    """
    name = named_query_set(session.run, example_set)
    for read in ("train", name):
        session.refresh(read)
    good = []
    rows = sample_of(session, n_examples)
    for of_train, of_queries in zip(
        stored_rows(session.run, "train"), stored_rows(session.run, name), strict=True
    ):
        of_train.require_complete()
        of_queries.require_complete()
        good.append(stored_values(of_train, FLAGS, rows) == 0)
    rows = rows[np.all(good, axis=0)]
    facts = session.run.example_set(name)
    queries = np.unique(np.linspace(0, facts.count - 1, n_queries).astype(np.int64))
    return Pilot(
        session=session,
        example_set=name,
        rows=rows,
        queries=queries,
        batches=_batches(session, "train", rows),
        query_batches=_batches(session, name, queries),
        measurement=facts.measurement,
    )


def pilot_run(
    pilot: Pilot, folder: Path, changes: Mapping[str, Any], like: OpenRun | None = None
) -> str:
    """Make a temporary run in ``folder``, sketch it, and return its path.

    Args:
        changes: Keys of the manifest, such as ``rows.bytes``, and their other values.
        like: Another pilot run, whose sketch is taken over as far as it is the same.
    """
    manifest = deepcopy(pilot.session.run.manifest)
    for key, value in changes.items():
        table, _, last = key.partition(".")
        manifest[table][last] = value
    path = str(folder)
    run = OpenRun.create(path, manifest)
    _take_over_data(pilot.session.run, run)
    if like is not None:
        reuse_sketch(like, run)
    execution = Execution(executor="serial", workers=1, device=pilot.device)
    sketch_missing(open_session(path, execution.resolved_device()), execution)
    return path


def _take_over_data(source: OpenRun, target: OpenRun) -> None:
    """Have a temporary run be of the same training set, pinned by the sizes and times of its files.

    The session of the run itself has checked the bytes.
    """
    place = source.place
    for number, pinned in enumerate(source.train.generations):
        table = place.table("train", number, pinned.table)
        reader = open_reader(table, place.root)
        reader.expect_code(pinned.code)
        generation = {
            "measurement": source.train.measurement,
            "table": pinned.table,
            "count": pinned.count,
            "partition_examples": pinned.partition_examples,
            "identity": identity(target.storage, reader, table, digest=False),
            "code": pinned.code,
        }
        (target.append if number else target.begin)("train", generation)
    target.move_to(place)


def pilot_scores(pilot: Pilot, path: str) -> PilotScores:
    """Return the scores that a sketched run gives the pilot, its rows made in memory."""
    session = open_session(path, pilot.device)
    count = session.run.train.count
    total = PilotScores(np.zeros((len(pilot.rows), len(pilot.queries))))
    factors = checkpoint_factors(session.run.method, count)
    for at, factor in zip(at_checkpoints(session), factors, strict=True):
        decision = Decision(at)
        queries = torch.cat(list(whitened(decision, pilot, of_queries=True)))
        asked, pieces = decision.codec.query(decision.preconditioner.for_queries(queries)), []
        for plain in whitened(decision, pilot):
            rows = decision.preconditioner.for_rows(plain)
            encoded = decision.codec.encode(rows)
            total.add(torch.zeros(()), shares(decision.codec, rows, encoded))
            pieces.append(decision.codec.product(asked, encoded))
        total.add(torch.cat(pieces) * factor, {})
    return total


def stored_scores(pilot: Pilot) -> PilotScores:
    """Return the scores of the pilot from the rows that the run itself has stored."""
    run, total = pilot.session.run, PilotScores(np.zeros((len(pilot.rows), len(pilot.queries))))
    sides = Queries(run, pilot.example_set, device=pilot.device).sides()
    for rows, (codec, queries, weight) in zip(stored_rows(run, "train"), sides, strict=True):
        arrays = [stored_values(rows, name, pilot.rows) for name in (ROWS, SCALE)]
        encoded = Encoded(*(torch.from_numpy(array).to(queries.device) for array in arrays))
        total.add(codec.product(queries[pilot.queries], encoded) * weight, {})
        for receipt in rows.receipts():
            total.add(torch.zeros(()), receipt.facts["stored"])
    return total


def whitened(
    decision: Decision,
    pilot: Pilot,
    of_queries: bool = False,
    batches: list[Any] | None = None,
) -> Iterator[Tensor]:
    """Yield the whitened rows of the pilot's examples, or of its queries, batch by batch.

    Args:
        batches: Others, in place of the pilot's.
    """
    feature = decision.at.feature
    chosen = batches or (pilot.query_batches if of_queries else pilot.batches)
    for batch in chosen:
        measurement = pilot.measurement if of_queries else TRAINING_LOSS
        yield measured_rows(decision, feature, batch, measurement)[0]


def stored_values(stored: StoredRows, name: str, rows: np.ndarray) -> np.ndarray:
    """Return an array of examples at sorted global rows, reading no partition twice."""
    pieces = []
    for receipt, inside in stored.holding(rows):
        mine = rows[inside] - receipt.start
        part = stored.run.read(receipt, name, rows=slice(int(mine[0]), int(mine[-1]) + 1))
        pieces.append(part[mine - mine[0]])
    return np.concatenate(pieces)


def _batches(session: Session, example_set: str, rows: np.ndarray) -> list[Any]:
    size, reader = session.run.method.batches.batch_size, session.reader(example_set)
    cuts: Sequence[np.ndarray] = np.split(rows, range(size, len(rows), size))
    return [session.batch(reader.take(cut)) for cut in cuts]
