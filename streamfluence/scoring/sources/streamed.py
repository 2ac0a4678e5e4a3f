"""Scores of gradients that stream by: every training example is run again, and no row is stored."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamfluence.data._prefetch import prefetch
from streamfluence.errors import CoverageError, InputError
from streamfluence.execution import Execution, Progress
from streamfluence.job import Score
from streamfluence.layout import Span, cut
from streamfluence.options import checked
from streamfluence.readouts.base import Arrays, ScoreBlock
from streamfluence.run.at_checkpoint import at_checkpoints
from streamfluence.run.feature import checkpoint_factors
from streamfluence.run.opened import OpenRun
from streamfluence.run.prepared import prepared_receipt
from streamfluence.run.session import Session, open_session
from streamfluence.run.source import DIRECTIONS
from streamfluence.run.unprojected import CURVATURES, Unprojected
from streamfluence.scoring.asked import Asked
from streamfluence.scoring.sources._directions import make_directions
from streamfluence.scoring.sources._losses import block
from streamfluence.scoring.sources.base import Source, Tile, Wanted

QUERY_BYTES = 256 << 20  # of directions held at once
MOST_QUERIES = 64  # of the scores of a partition held at once: 64 MiB of the largest there is
BLOCK_ROWS = 8192
PROVED = 256  # one example in so many of a partition, and its first two, are run alone as well


def tile_size(weights: int) -> int:
    """Return how many queries are scored at a time, by the length of a direction."""
    return min(MOST_QUERIES, max(1, QUERY_BYTES // (4 * weights)))


class Streamed(Source):
    """Unprojected gradients of training examples times a direction a query, by forward mode.

    A direction is the query's gradient times the inverse of the damped curvature, solved by a
    member of `solvers` before any example is scored; of curvature.name = `identity` it is the
    gradient itself. One forward pass an example and query, over all of the training set: for few
    queries, and as a check of what projection and rows of few bytes cost. Where the model has no
    forward-mode derivatives, gradients of each example are formed and forgotten, which is as exact.

    Source:
        Ko et al., The Mirrored Influence Hypothesis: Efficient Data Influence Estimation by Harnessing
        Forward Passes (2024), https://arxiv.org/abs/2402.08922, there by finite differences; Koh and
        Liang, Understanding Black-box Predictions via Influence Functions (2017),
        https://arxiv.org/abs/1703.04730.
    """

    gives = ("scores", "columns")

    @classmethod
    def pinned(cls, run: OpenRun, asked: Asked, before: Mapping[str, Any]) -> dict[str, Any]:
        solver = asked.solver or before.get("solver", Score.solver)
        options = dict(asked.solver_options or before.get("options", {}))
        checked("solvers", solver, options)(**options)
        return {"solver": solver, "options": options}

    @classmethod
    def refuse(cls, run: OpenRun) -> None:
        curvature = run.method.curvature.name
        if curvature not in CURVATURES:
            raise InputError(
                f"score.source = 'streamed' needs products with the curvature, which {curvature!r} has "
                f"none of; use one of {', '.join(CURVATURES)}, or score.source = 'rows'"
            )

    def prepare(self, execution: Execution, progress: Progress) -> tuple[Arrays, dict[str, Any]]:
        return make_directions(open_session(self.run.url, self.device), self.spec, progress)

    def tiles(self) -> list[Tile]:
        count = self.run.example_set(self.spec["queries"]).count
        with self.run.reader(prepared_receipt(self.run, self.label), f"{DIRECTIONS}.0") as reader:
            width = reader.shape[1]
        size = tile_size(width)
        return [(start, min(start + size, count)) for start in range(0, count, size)]

    def blocks(self, wanted: Wanted) -> Iterator[ScoreBlock]:
        session = open_session(self.run.url, self.device)
        session.refresh("train")
        for partition in wanted.partitions:
            span = self.run.train.spans[partition]
            scores, losses = self._scored(session, span, wanted.tile, "columns" in wanted.needs)
            session.refuse_touched("train")
            valid = np.isfinite(scores).all(axis=1) & np.isfinite(losses)
            for part in cut(span, wanted.block_rows or BLOCK_ROWS):
                own = slice(part.start - span.start, part.stop - span.start)
                yield block(session, part, scores[own], losses[own], valid[own])

    def _scored(
        self, session: Session, span: Span, tile: Tile, with_losses: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scores ``(example, query)`` and the mean loss over checkpoints ``(example,)``."""
        scores = np.zeros((len(span), tile[1] - tile[0]), np.float32)
        losses = np.zeros(len(span), np.float32)
        receipt = prepared_receipt(self.run, self.label)
        factors = checkpoint_factors(self.run.method, self.run.train.count)
        for at, factor in zip(at_checkpoints(session), factors, strict=True):
            net, alone = Unprojected(at), receipt.facts["alone"][at.number]
            kept = self.run.read(receipt, f"{DIRECTIONS}.{at.number}", rows=slice(*tile))
            directions = torch.from_numpy(kept).to(session.device) * factor
            for part, batch in _batches(session, span):
                own = slice(part.start - span.start, part.stop - span.start)
                found = (net.slopes_alone if alone else net.slopes)(batch, directions)
                if part.start == span.start and not alone:
                    _prove(net, batch, directions, found, span)
                scores[own] += found.T.cpu().numpy()
                if with_losses:
                    losses[own] += net.losses(batch).cpu().numpy() / np.float32(len(factors))
        return scores, losses


def _batches(session: Session, span: Span) -> Iterator[tuple[Span, Any]]:
    """Yield the batches of a partition on the device, cut where those of any partition are."""
    reader = session.reader("train")
    parts = list(cut(span, session.run.method.batches.batch_size))
    for part, host in zip(
        parts, prefetch(reader.read(p.start, p.stop) for p in parts), strict=True
    ):
        yield part, session.batch(host)


def _prove(net: Unprojected, batch: Any, directions: Tensor, slopes: Tensor, span: Span) -> None:
    """Raise CoverageError unless products of some examples of a partition are what they are alone."""
    random = np.random.default_rng([span.start, len(span)])
    few = max(2, -(-len(span) // PROVED))
    places = random.permutation(slopes.shape[1])[:few].tolist()
    if net.differs(batch, directions, slopes, places):
        raise CoverageError(
            f"scores of the training examples {span.start:,} and on are others when an example is run "
            "alone: the model mixes the examples of a batch; set model.one_by_one = true in the job, and "
            "make a new run"
        )
