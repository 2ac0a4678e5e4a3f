"""Scores of a recorded training: what leaving an example out of its steps did to each query."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from streamfluence.errors import InputError
from streamfluence.execution import Execution, Progress, run_all
from streamfluence.job import Score
from streamfluence.layout import Span, cut
from streamfluence.options import checked, make
from streamfluence.readouts.base import Arrays, ScoreBlock
from streamfluence.recorded import open_record
from streamfluence.run.opened import OpenRun
from streamfluence.run.prepared import prepared_receipt
from streamfluence.run.session import Session, open_session
from streamfluence.run.source import DIRECTIONS, SOURCE, scan_of
from streamfluence.scoring.asked import Asked
from streamfluence.scoring.sources._losses import block
from streamfluence.scoring.sources._record import file_digest, refuse_what_is_not_followed
from streamfluence.scoring.sources._walk import EXAMPLES, LOSSES, Walker, segment_state, walk
from streamfluence.scoring.sources.base import Source, Tile, Wanted
from streamfluence.store import Receipt
from streamfluence.store.digests import document_digest

LEAST_STEPS, MOST_SEGMENTS = 8, 16  # of a segment; each stores one matrix of the width of a row
MOST_QUERIES, QUERY_BYTES = 64, 256 << 20  # scored at once
BLOCK_ROWS = 8192


class Recorded(Source):
    """Effects of examples in the steps they were in, carried to the end of a recorded training.

    `score.record` names what `streamfluence.record` wrote, `score.scan` how its steps are walked,
    and the job's one checkpoint is `final.pt` of the record, or weights of one of its steps: then
    the steps before it count. The gradients of every step's examples are taken at the weights before
    it (the last that were written), whole where the model has at most 8,192 weights, else by the
    run's projection, which must be one that is not fitted to a sample. A score is the predicted
    increase of the query's loss if the example were left out of all steps it was in, the others and
    their order staying as they were; of an example that was in none it is 0. Walked once in up to 16
    segments, which are stored, whatever the queries are. Of plain SGD, with or without weight decay.

    Source:
        Wang et al., Capturing the Temporal Dependence of Training Data Influence,
        https://arxiv.org/abs/2412.09538.
    """

    gives = ("scores", "columns")
    damps = False

    @classmethod
    def pinned(cls, run: OpenRun, asked: Asked, before: Mapping[str, Any]) -> dict[str, Any]:
        folder = asked.record or before.get("record")
        if folder is None:
            raise InputError(
                "score.source = 'recorded' scores a recorded training; name its folder by score.record or "
                "--record, and make one by streamfluence.record"
            )
        scan = asked.scan or before.get("scan", Score.scan)
        options = dict(asked.scan_options or before.get("options", {}))
        checked("scans", scan, options)(**options)
        found = open_record(run.place.root / folder)
        checkpoint = run.checkpoint_path(0)
        until = found.until(file_digest(checkpoint))
        if until is None or not until.steps:
            raise InputError(
                f"checkpoint {checkpoint} is not what the record in {found.folder} came to, or holds weights "
                "from before its first step; name its final.pt, or weights of a later step, as checkpoint"
            )
        refuse_what_is_not_followed(until)
        size = max(LEAST_STEPS, -(-len(until.steps) // MOST_SEGMENTS))
        said = {
            "scan": scan,
            "options": options,
            "digest": until.digest,
            "segments": [span.stop for span in cut(Span(0, len(until.steps)), size)],
        }
        key = document_digest([said, run.train.seal])
        return {**said, "record": str(folder), "key": key}

    @classmethod
    def refuse(cls, run: OpenRun) -> None:
        if len(run.checkpoints) > 1:
            raise InputError(
                "score.source = 'recorded' follows one training to its end, but the run has "
                f"{len(run.checkpoints)} checkpoints; name one"
            )

    @classmethod
    def try_out(cls, session: Session, said: Mapping[str, Any]) -> None:
        Walker(session, said)

    @classmethod
    def meaning(cls, said: str) -> str:
        return (
            "score = predicted increase of the query's measurement if the example were left out of the "
            "recorded steps it was in, all else as it was; positive: the example helped the query, "
            "negative: it hurt; summed over its steps"
        )

    def prepare(self, execution: Execution, progress: Progress) -> tuple[Arrays, dict[str, Any]]:
        session, queries = open_session(self.run.url, self.device), self.spec["queries"]
        walker = Walker(session, self.spec[SOURCE])
        self._walk_missing(execution, progress)
        session.refresh(queries)
        directions, values = walker.queries(queries)
        session.refuse_touched(queries)
        arrays: Arrays = {f"{DIRECTIONS}.value": values.numpy()}
        for number, receipt in reversed(list(enumerate(self._segments()))):
            arrays[f"{DIRECTIONS}.{number}"] = directions.float().numpy()
            directions = walker.scan.carry(segment_state(self.run, receipt), directions)
        return arrays, {"record": self._said(walker)}

    def _walk_missing(self, execution: Execution, progress: Progress) -> None:
        stage, count = scan_of(self.spec)
        missing = self.run.missing(stage, count)
        if not missing:
            return
        tasks = [(self.run.url, self.device, self.label, each) for each in missing]
        progress.start("scan", len(missing), "segments")
        with execution.open(len(missing), self.run.method.batches.threads) as executor:
            run_all(executor, walk, tasks, lambda *_: progress.advance(1))
        progress.finish()

    def _said(self, walker: Walker) -> dict[str, Any]:
        said = self.spec[SOURCE]
        made = make("scans", said["scan"], said["options"])
        name = "gauss_newton" if made.source == "probes" else "fisher"
        return {
            "projection": walker.projection_name,
            "directions": walker.width,
            "gradient_energy_kept": 1.0 if walker.whole else None,
            "curvature": f"{name} of each step's examples, joint",
            "curvature_note": None,
            "curvature_from": f"the examples of {said['segments'][-1]:,} recorded steps",
            "sample_examples": None,
            "damping": None,
            "damping_rule": "none: training is followed step by step",
            "damping_share_by_weight": 0.0,
            "effective_dimension": None,
            "scan": said["scan"],
            "scan_options": dict(said["options"]),
            "steps": said["segments"][-1],
            "examples_trained_on": sum(receipt.facts["examples"] for receipt in self._segments()),
        }

    def _segments(self) -> list[Receipt]:
        stage, count = scan_of(self.spec)
        found = self.run.receipts(stage)
        return [found[number] for number in range(count)]

    def tiles(self) -> list[Tile]:
        count = self.run.example_set(self.spec["queries"]).count
        with self.run.reader(prepared_receipt(self.run, self.label), f"{DIRECTIONS}.0") as reader:
            width = reader.shape[1]
        most = QUERY_BYTES // (4 * width * len(self.spec[SOURCE]["segments"]))
        size = max(1, min(MOST_QUERIES, most))
        return [(start, min(start + size, count)) for start in range(0, count, size)]

    def blocks(self, wanted: Wanted) -> Iterator[ScoreBlock]:
        session, receipt = (
            open_session(self.run.url, self.device),
            prepared_receipt(self.run, self.label),
        )
        read = range(len(self._segments()))
        directions = [
            self.run.read(receipt, f"{DIRECTIONS}.{n}", rows=slice(*wanted.tile)) for n in read
        ]
        for partition in wanted.partitions:
            span = self.run.train.spans[partition]
            scores, losses = self._scored(span, directions)
            valid = np.isfinite(scores).all(axis=1)
            for part in cut(span, wanted.block_rows or BLOCK_ROWS):
                own = slice(part.start - span.start, part.stop - span.start)
                yield block(session, part, scores[own], losses[own], valid[own])

    def _scored(
        self, span: Span, directions: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scores ``(example, query)`` and losses at the last step of each ``(example,)``."""
        scores = np.zeros((len(span), len(directions[0])), np.float32)
        losses = np.full(len(span), np.nan, np.float32)
        for receipt, asked in zip(self._segments(), directions, strict=True):
            examples = self.run.read(receipt, EXAMPLES)
            own = slice(*np.searchsorted(examples, (span.start, span.stop)).tolist())
            if own.start == own.stop:
                continue
            places = examples[own] - span.start
            rows = torch.from_numpy(self.run.read(receipt, "embeddings", rows=own))
            np.add.at(scores, places, (rows @ torch.from_numpy(asked).T).numpy())
            losses[places] = self.run.read(receipt, LOSSES, rows=own)
        return scores, losses
