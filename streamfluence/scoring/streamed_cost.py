"""What scores of gradients that stream by cost: counted by formula, timed on a little of the real work."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from torch import Tensor

from streamfluence.data._batches import batch_length
from streamfluence.job import Job
from streamfluence.options import make
from streamfluence.readouts.base import Readout
from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.run.readouts import needed
from streamfluence.run.source import SOURCE
from streamfluence.run.unprojected import Unprojected
from streamfluence.scoring.sources._directions import one_by_one, solved, solved_at_once, systems
from streamfluence.scoring.sources.streamed import tile_size
from streamfluence.solvers.base import Solved

_ALIKE = 8  # directions that are timed together: forward mode takes that many at once
_REPEATS = 3
_HELD = (
    6  # vectors of a system's size that a solver holds at its peak, with gradients and directions
)


@dataclass(frozen=True)
class Streaming:
    """What streamed scores take, from a probe; seconds on one worker.

    Attributes:
        queries: Of every query set.
        checkpoints: How many; each is taken to cost what the first does.
        weights: That take part, which is the length of a direction.
        number_bytes: Of one number of it.
        with_losses: Whether some readout wants the losses of training examples.
        steps: Products with the curvature that one direction of the probe took, over all its systems;
            of a small sample, so one of the job may take more or fewer.
        most_steps: As many as the solver may take before it gives up.
        gradient_seconds: A query's gradient.
        product_seconds: One direction times the curvature of one sampled example.
        score_seconds: One direction times the gradient of one training example.
        loss_seconds: One training example's loss.
    """

    queries: Sequence[int]
    checkpoints: int
    weights: int
    number_bytes: int
    one_by_one: bool
    with_losses: bool
    steps: int
    most_steps: int
    gradient_seconds: float
    product_seconds: float
    score_seconds: float
    loss_seconds: float

    def table(self, examples: int, sample: int, workers: int) -> dict[str, Any]:
        """Return the cost as JSON-able numbers.

        Args:
            examples: Of the training set.
            sample: Examples that the curvature is made of.

        Returns:
            ``products_per_example``: forward-mode products of each training example, one a query and
            checkpoint. ``solver_passes``: readings of the sample by the solver, as many as the
            directions of the probe took, and ``solver_passes_at_most``. ``passes``: readings of the
            training set. ``seconds`` after the sketch, ``seconds_at_most`` with all of the solver's
            steps; and what they were computed from.
        """
        scoring = self.scoring_seconds(examples) / workers
        return {
            "products_per_example": self.checkpoints * sum(self.queries),
            "solver_passes": self.solver_passes(self.steps),
            "solver_passes_at_most": self.solver_passes(self.most_steps),
            "passes": self.checkpoints * sum(map(self._tiles, self.queries)),
            "seconds": self.direction_seconds(sample, self.steps) + scoring,
            "seconds_at_most": self.direction_seconds(sample, self.most_steps) + scoring,
            "weights": self.weights,
            "one_by_one": self.one_by_one,
            "solver_steps": self.steps,
            "product_seconds_per_example": self.product_seconds,
            "score_seconds_per_example": self.score_seconds,
        }

    def solver_passes(self, steps: int) -> int:
        """Return how often the sample is read: once a product of directions that are solved together."""
        at_once = solved_at_once(self.weights)
        return self.checkpoints * steps * sum(-(-n // at_once) for n in self.queries)

    def direction_seconds(self, sample: int, steps: int) -> float:
        """Return the time of all directions, which one process makes.

        Args:
            steps: Products with the curvature of one direction.
        """
        one = self.gradient_seconds + steps * sample * self.product_seconds
        return self.checkpoints * sum(self.queries) * one

    def scoring_seconds(self, examples: int) -> float:
        """Return the time of all products of examples and queries, on one worker."""
        one = sum(self.queries) * self.score_seconds
        if self.with_losses:
            one += sum(map(self._tiles, self.queries)) * self.loss_seconds
        return self.checkpoints * examples * one

    def direction_bytes(self, queries: int) -> int:
        """Return what the directions of so many queries take at one checkpoint."""
        return queries * self.weights * self.number_bytes

    def peak_bytes(self) -> int:
        """Return what a worker holds of directions at most: all, and a few times those solved at once."""
        most = max(self.queries, default=0)
        together = min(most, solved_at_once(self.weights))
        return self.direction_bytes((self.checkpoints + 1) * most + _HELD * together)

    def _tiles(self, queries: int) -> int:
        return -(-queries // tile_size(self.weights))


def probed(
    at: AtCheckpoint, job: Job, readouts: Mapping[str, Readout], queries: Mapping[str, int]
) -> Streaming:
    """Return the cost of a job's scores, by doing a little of them where a sketch is there.

    Training examples stand in for queries, whose gradients cost as much.

    Args:
        at: The first checkpoint of a run of the job.
        queries: How many every set has.
    """
    solver, options = job.score.solver, dict(job.score.solver_options)
    spec = {"damping": None, SOURCE: {"solver": solver, "options": options}}
    net, counted = Unprojected(at), list[Solved]()
    one, *batches = _batches(at, job.compute.batch_size)
    gradients = net.loss_gradients(one)
    found = solved(at, net, gradients, spec, counted.append)
    alone = one_by_one(at.session, net, found)
    alike = found.repeat(_alike(net.width, queries), 1)
    slopes = net.slopes_alone if alone else net.slopes
    most = (int(make("solvers", solver, options).steps) + 1) * len(systems(at, net))
    return Streaming(
        queries=tuple(queries.values()),
        checkpoints=len(at.session.run.checkpoints),
        weights=net.width,
        number_bytes=found.element_size(),
        one_by_one=alone,
        with_losses="columns" in needed(readouts.values()),
        steps=sum(each.steps for each in counted),
        most_steps=most if counted else 0,
        gradient_seconds=_seconds(lambda: net.loss_gradients(one)),
        product_seconds=_product_seconds(at, net, alike) if counted else 0.0,
        score_seconds=_an_example(lambda batch: slopes(batch, alike), batches) / len(alike),
        loss_seconds=_an_example(net.losses, batches),
    )


def _alike(weights: int, queries: Mapping[str, int]) -> int:
    """Return how many directions are timed together: as the job will have them, but few."""
    return max(1, min(max(queries.values(), default=1), _ALIKE, tile_size(weights)))


def _batches(at: AtCheckpoint, size: int) -> list[Any]:
    """Return one example, and the first two batches of the training set."""
    session, count = at.session, at.session.run.train.count
    ends = [1, min(size, count), min(2 * size, count)]
    starts = [0, 0, min(size, count - 1)]
    reader = session.reader("train")
    return [session.batch(reader.read(*cut)) for cut in zip(starts, ends, strict=True)]


def _product_seconds(at: AtCheckpoint, net: Unprojected, directions: Tensor) -> float:
    """Return seconds a direction and sampled example of a product with the curvature."""
    run, name = at.session.run, at.session.used_curvature.name
    sample = min(run.method.sketch.examples, run.train.count)
    return _seconds(lambda: net.product(name, directions)) / (sample * len(directions))


def _an_example(work: Callable[[Any], Any], batches: Sequence[Any]) -> float:
    """Return seconds an example of work on every batch."""
    examples = sum(map(batch_length, batches))
    return _seconds(lambda: [work(batch) for batch in batches]) / examples


def _seconds(work: Callable[[], Any]) -> float:
    """Return the median time of a few repetitions, after one that warms up."""
    times = []
    for _ in range(_REPEATS + 1):
        started = time.monotonic()
        work()
        times.append(time.monotonic() - started)
    return median(times[1:])
