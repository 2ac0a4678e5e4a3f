"""The queries of a score as training rows meet them: damped, centred and scaled, a tile at a time."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from streamfluence.codecs.base import Codec
from streamfluence.columns import FLAGS, ROWS
from streamfluence.errors import NonFiniteError
from streamfluence.readouts.base import ScoreBlock
from streamfluence.run.decision import load_codec
from streamfluence.run.feature import checkpoint_factors, feature_of
from streamfluence.run.opened import OpenRun
from streamfluence.run.rests_on import sketch_digest
from streamfluence.run.rows import StoredRows, stored_rows
from streamfluence.scoring import product as _product
from streamfluence.scoring.scaled import centred, scale_of, scaled_queries
from streamfluence.scoring.stored import PartitionRows
from streamfluence.scoring.terms import Term
from streamfluence.store.digests import content_digest

QUERY_BYTES = 256 << 20  # of query rows held at once, all checkpoints together
Tile = tuple[int, int]


class Side(NamedTuple):
    """What training rows of one checkpoint are multiplied with.

    Attributes:
        codec: Of the rows.
        queries: In its coordinates, ``(query, stored)``, float32, on the device of the product.
        weight: Of the checkpoint, 1/n included.
    """

    codec: Codec
    queries: Tensor
    weight: float


@dataclass(frozen=True)
class Queries:
    """A query set against the stored training rows of its run.

    Attributes:
        example_set: Its name.
        damping: Another than the rows were whitened with; None for that.
        scale: Member of ``scales``, which may multiply queries, too.
        device: Of the products.
    """

    run: OpenRun
    example_set: str
    damping: float | None = None
    scale: str = "none"
    device: str = "cpu"

    def tiles(self) -> list[Tile]:
        """Return the ranges of queries that are scored at a time: all, where their rows fit in memory.

        Every tile reads the training rows once. The cut depends on the run alone, never on the
        machine, so that results do not.
        """
        run, count = self.run, self.run.example_set(self.example_set).count
        width = sum(load_codec(run, checkpoint)[1].width for checkpoint in run.checkpoints)
        size = max(_product.PADDING_ROWS, QUERY_BYTES // (4 * width))
        return [(start, min(start + size, count)) for start in range(0, count, size)]

    def sides(self, tile: Tile | None = None) -> list[Side]:
        """Return what rows are multiplied with at every checkpoint.

        Args:
            tile: Range of queries; None takes all, and of an empty one no query is looked at.
        """
        run = self.run
        if tile == (0, 0):
            return self._sides_without_queries()
        receipts = (r for rows in stored_rows(run, self.example_set) for r in rows.receipts())
        sketches = (sketch_digest(run, checkpoint) for checkpoint in run.checkpoints)
        rests_on = (run.fingerprint, content_digest(receipts), *sketches)
        chosen = (self.example_set, self.damping, self.scale, self.device)
        return _sides(run.url, chosen, tile, rests_on)

    def terms(
        self,
        partitions: Sequence[int],
        tile: Tile,
        needs: Collection[str] = ("scores", "columns"),
    ) -> list[Term]:
        """Return what every checkpoint adds to the scores of some partitions.

        Args:
            needs: What of the rows is read, see ``Readout.needs``.
        """
        scale = scale_of(self.scale) if "scores" in needs else None
        columns = scale.columns if scale else ()
        return [
            Term(PartitionRows(self.run, rows.receipts(partitions), needs, columns), *side)
            for rows, side in zip(stored_rows(self.run, "train"), self.sides(tile), strict=True)
        ]

    def blocks(
        self, partitions: Sequence[int], tile: Tile, chosen: np.ndarray | None = None
    ) -> Iterator[ScoreBlock]:
        """Yield the scores of some partitions for the queries of one tile; blocks reuse their arrays.

        Args:
            chosen: Only these queries of the tile, counted from its first.
        """
        terms = self.terms(partitions, tile)
        if chosen is not None:
            terms = [term.of_queries(chosen) for term in terms]
        block_rows = _product.rows_per_block(len(terms[0].queries))
        return _product.score_blocks(terms, block_rows, scale=scale_of(self.scale))

    def scores(self, partition: int, tile: Tile | None = None) -> np.ndarray:
        """Return the scores of one partition, ``(example, query)``; quarantined rows are NaN.

        Args:
            tile: Range of queries; None takes all, whose rows are then held a tile at a time.
        """
        of_tiles = [
            [
                np.where(block.valid[:, None], block.scores, np.float32(np.nan))
                for block in self.blocks([partition], each)
            ]
            for each in ([tile] if tile is not None else self.tiles())
        ]
        return np.concatenate([np.concatenate(blocks) for blocks in of_tiles], axis=1)

    def _sides_without_queries(self) -> list[Side]:
        run = self.run
        codecs = [load_codec(run, checkpoint)[0].to(self.device) for checkpoint in run.checkpoints]
        factors = checkpoint_factors(run.method, run.train.count)
        return [
            Side(codec, torch.empty(0, codec.stored, device=self.device), factor)
            for codec, factor in zip(codecs, factors, strict=True)
        ]


@lru_cache(maxsize=1)
def _sides(
    url: str,
    chosen: tuple[str, float | None, str, str],
    tile: Tile | None,
    rests_on: tuple[str, ...],
) -> list[Side]:
    """Return the sides; the digests tell runs and query sets of one name apart."""
    queries = Queries(OpenRun.open(url), *chosen)
    run, device = queries.run, queries.device
    factors = checkpoint_factors(run.method, run.train.count)
    assert len(factors) == len(run.checkpoints), "a weight is missing"
    codecs, asked = [], []
    for rows in stored_rows(run, queries.example_set):
        codec, preconditioner = load_codec(run, rows.checkpoint)
        found, damping = query_rows(rows, tile), queries.damping
        codecs.append(codec)
        asked.append(found if damping is None else preconditioner.redamp(found, damping))
    if feature_of(run.method).centred:
        asked = centred(asked, factors)
    if (scale := scale_of(queries.scale)) is not None:
        asked = scaled_queries(run, queries.example_set, asked, scale, tile)
    return [
        Side(codec.to(device), codec.query(rows).to(device), factor)
        for codec, rows, factor in zip(codecs, asked, factors, strict=True)
    ]


def query_rows(rows: StoredRows, tile: Tile | None = None) -> Tensor:
    """Return the whitened float32 rows of a query set, or a tile of it, ``(query, feature)``.

    Raises:
        NonFiniteError: If a query was NaN or infinite; its scores would mean nothing.
        IncompleteError: If one is missing.
    """
    run, ordered = rows.run, rows.receipts()
    flags = np.concatenate([run.read(receipt, FLAGS) for receipt in ordered])
    if flags.any():
        bad = np.flatnonzero(flags)[:8].tolist()
        raise NonFiniteError(
            f"queries {bad} of {rows.example_set!r} gave NaN or infinite rows at checkpoint "
            f"{rows.checkpoint}; remove them from the query set"
        )
    low, high = tile or (0, ordered[-1].stop)
    pieces = [
        run.read(receipt, ROWS, rows=slice(max(low - receipt.start, 0), high - receipt.start))
        for receipt in ordered
        if receipt.start < high and receipt.stop > low
    ]
    found = np.concatenate(pieces or [run.read(ordered[0], ROWS)[:0]])
    assert len(found) == high - low, "partitions that follow each other hold every query"
    return torch.from_numpy(found)
