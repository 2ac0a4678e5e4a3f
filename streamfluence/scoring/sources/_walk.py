"""Walk the steps of a recorded training: the work unit of one segment, and what it measures by.

Segments are walked apart, each from its last step to its first, and stored with the examples of
their steps sorted, so that those of a partition of the training set lie together.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamfluence.errors import InputError, NonFiniteError
from streamfluence.features.gradient import Gradient
from streamfluence.layout import Span, cut
from streamfluence.linalg import State
from streamfluence.options import make
from streamfluence.projections.base import Projection
from streamfluence.recorded import Recorded
from streamfluence.registry import member
from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.run.finished import read_spec
from streamfluence.run.opened import OpenRun
from streamfluence.run.rests_on import set_digest
from streamfluence.run.session import Session, worker_unit
from streamfluence.run.source import SOURCE, scan_of
from streamfluence.scans.base import EMBEDDINGS, Scan
from streamfluence.scoring.sources._record import RowsOfSteps, Weights, pinned_record
from streamfluence.store import Receipt, array_names

EXAMPLES, LOSSES, STATE = "examples", "losses", "state."
MOST_WIDTH = 8192  # of a row: a state is a matrix of this width, 512 MiB in float64
EXACT_COLUMNS = 32  # with at most this many outputs probes are replaced by their exact sum
PROBES = 4  # an example, where outputs are more: their noise adds up over steps
PROVED = 2  # examples of a segment whose gradients are compared with plain autograd


def segment_state(run: OpenRun, receipt: Receipt) -> State:
    """Return what is kept of the state of a segment beside its embeddings."""
    names = [name for name in array_names(receipt) if name.startswith(STATE)]
    return {name.removeprefix(STATE): torch.from_numpy(run.read(receipt, name)) for name in names}


@worker_unit
def walk(session: Session, label: str, number: int) -> dict[str, int]:
    """Walk one segment and commit it; return how many steps it has."""
    spec = read_spec(session.run, label)
    said = spec[SOURCE]
    first, stop = [0, *said["segments"]][number : number + 2]
    session.refresh("train")
    recorded = pinned_record(session, said)
    walker = Walker(session, said)
    state, examples, losses = walker.walked(recorded, range(first, stop))
    session.refuse_touched("train")
    order = np.argsort(examples, kind="stable")
    embeddings = state.pop(EMBEDDINGS).float().numpy()
    if not np.isfinite(embeddings).all():
        raise NonFiniteError(
            f"effects of the recorded steps {first} to {stop - 1} grow without bound: a step was longer than "
            "the curvature of its examples allows; score stored rows, or record a training of smaller rate"
        )
    arrays = {
        EMBEDDINGS: embeddings[order],
        EXAMPLES: examples[order],
        LOSSES: losses[order],
        **{f"{STATE}{name}": tensor.numpy() for name, tensor in state.items()},
    }
    facts = {"set": set_digest(session.run, "train"), "examples": len(examples)}
    session.run.commit(scan_of(spec)[0], number, arrays, {"steps": [first, stop]}, facts)
    return {"steps": stop - first}


class Walker:
    """Gradients of the examples of steps, as rows, at the weights before each.

    Attributes:
        scan: By which they are walked.
        projection: From gradients to rows.
        whole: Whether a row is the gradient as it is.

    Raises:
        InputError: If the model has too many weights for rows without projection, and the run's
            projection is fitted or too wide; or its task has no outputs to probe.
    """

    def __init__(self, session: Session, said: Mapping[str, Any]) -> None:
        self._session = session
        self.scan: Scan = make("scans", said["scan"], said["options"])
        if self.scan.source == "probes" and session.task.likelihood is None:
            raise InputError(
                f"{session.task.name} gives only loss(), which has no output Hessian to probe; set "
                "score.scan_options = { curvature = 'fisher' }, or define likelihood and forward()"
            )
        capture = AtCheckpoint(session, 0).capture
        self.whole = sum(block.size for block in capture.blocks) <= MOST_WIDTH
        wanted = session.run.method.projection
        self.projection_name = "none: gradients as they are" if self.whole else wanted.name
        self.projection = self._projection()
        self.width = sum(part.width for part in self.projection.parts)
        if self.width > MOST_WIDTH:
            raise InputError(
                f"projection.width = {self.width:,}, and a scan has rows of at most {MOST_WIDTH:,}; set a "
                "smaller one, such as 4096"
            )

    def _projection(self) -> Projection:
        run, blocks = self._session.run, AtCheckpoint(self._session, 0).capture.blocks
        wanted, seed = run.method.projection, run.method.sketch.seed
        if self.whole:
            return self._made("identity", {}, 1, seed)
        if member("projections", wanted.name).fitted:
            weights = sum(block.size for block in blocks)
            raise InputError(
                f"the model has {weights:,} weights, of which a scan takes {MOST_WIDTH:,} as they are, and "
                f"the projection {wanted.name!r} is fitted to one checkpoint; set projection.name = "
                "'sparse_jl', and projection.width = 4096"
            )
        return self._made(wanted.name, wanted.options, wanted.width, seed)

    def _made(self, name: str, options: Mapping[str, Any], width: int, seed: int) -> Projection:
        blocks = AtCheckpoint(self._session, 0).capture.blocks
        made: Projection = make("projections", name, options, blocks, width, seed)
        return made.to(self._session.device)

    def queries(self, example_set: str) -> tuple[Tensor, Tensor]:
        """Return rows ``(query, feature)``, float64, and measurements of the queries at the end."""
        session, facts = self._session, self._session.run.example_set(example_set)
        feature, reader = AtCheckpoint(session, 0).feature, session.reader(example_set)
        rows, values = [], []
        for part in cut(Span(0, facts.count), session.run.method.batches.batch_size):
            batch = session.batch(reader.read(part.start, part.stop))
            measured = feature.measure(batch, facts.measurement, range(min(PROVED, len(part))))
            rows.append(self.projection.apply(measured.uses).double().cpu())
            values.append(measured.value.cpu())
        found, value = torch.cat(rows), torch.cat(values)
        bad = ~(torch.isfinite(found).all(1) & torch.isfinite(value))
        if bool(bad.any()):
            raise NonFiniteError(
                f"queries {bad.nonzero().flatten().tolist()[:8]} of {example_set!r} gave NaN or infinite "
                "gradients; remove them from the query set"
            )
        return found, value

    def walked(self, recorded: Recorded, steps: range) -> tuple[State, np.ndarray, np.ndarray]:
        """Return the state of some steps, and the row and the loss of every example in their order."""
        state = self.scan.empty(self.width)
        rows_of = RowsOfSteps(self._session)
        examples: list[np.ndarray] = []
        losses: list[np.ndarray] = []
        at = Weights(self._session, recorded)
        for number in reversed(steps):
            step = recorded.steps[number]
            feature, own = at(step.weights), rows_of(number, step)
            prove = number == steps[-1]
            found = [self._measured(feature, part, prove, number) for part in self._parts(own)]
            rows, vectors, values = (torch.cat(pieces) for pieces in zip(*found, strict=True))
            group = step.groups[0]
            rate = group.rate / (len(own) if recorded.reduction == "mean" else 1)
            probed = vectors if self.scan.source == "probes" else None
            state = self.scan.step(state, rows, rate, probed, group.rate * group.decay)
            examples.insert(0, own)
            losses.insert(0, values.numpy())
        return state, np.concatenate(examples), np.concatenate(losses)

    def _parts(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        size = self._session.run.method.batches.batch_size
        return iter(np.split(rows, range(size, len(rows), size)))

    def _measured(
        self, feature: Gradient, rows: np.ndarray, prove: bool, seed: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows, the vectors of their curvature and the losses of some examples, on the host."""
        session = self._session
        batch = session.batch(session.reader("train").take(rows))
        places = range(min(PROVED, len(rows))) if prove else ()
        measured = feature.measure(batch, prove=places)
        found = self.projection.apply(measured.uses).double().cpu()
        vectors = found[:0]
        if self.scan.source == "probes":
            ids = torch.from_numpy(rows)
            probed = feature.curvature_vectors("probes", batch, ids, seed, self._probes)
            vectors = torch.cat(
                [
                    weight**0.5 * self.projection.apply(uses).double().cpu()
                    for uses, weight in probed
                ]
            )
        return found, vectors, measured.value.cpu()

    def _probes(self, columns: int) -> int | None:
        wanted = self._session.run.method.sketch.probes
        if wanted == "exact" or (wanted == "auto" and columns <= EXACT_COLUMNS):
            return None
        return PROBES if wanted == "auto" else wanted
