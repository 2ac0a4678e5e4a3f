"""The stored rows of a run as the two sides of a product: training rows by the block, queries by the tile."""

from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from streamfluence.codecs.base import Codec, Encoded
from streamfluence.columns import FLAGS, GROUP, LOSS, ROWS, SCALE, SELF_INFLUENCE
from streamfluence.errors import NonFiniteError
from streamfluence.readouts.base import ScoreBlock
from streamfluence.run.decision import load_codec
from streamfluence.run.feature import checkpoint_factors, feature_of
from streamfluence.run.opened import OpenRun
from streamfluence.run.rests_on import sketch_digest
from streamfluence.run.rows import row_receipts
from streamfluence.scoring import product as _product
from streamfluence.scoring.scaled import centred, scale_of, scaled_queries
from streamfluence.scoring.terms import RowBlock, Term
from streamfluence.store import Receipt, array_names
from streamfluence.store.digests import content_digest
from streamfluence.store.run_store import RunStore

QUERY_BYTES = 256 << 20  # of query rows held at once, all checkpoints together


class StoredRows:
    """The rows of some partitions of the training set at one checkpoint, read a block at a time.

    Args:
        receipts: Of the partitions, in order; see ``row_receipts``.
        needs: What of them is read, see ``Readout.needs``; scores need codes and scales, as rows do.
        columns: Names of columns that a scale looks at.
    """

    def __init__(
        self,
        run: RunStore,
        receipts: Sequence[Receipt],
        needs: Collection[str],
        columns: Sequence[str] = (),
    ) -> None:
        self.run, self.receipts, self.columns = run, receipts, tuple(columns)
        self.with_codes = "scores" in needs or "rows" in needs
        scale = (SCALE,) if self.with_codes else ()
        known = (SELF_INFLUENCE, LOSS, GROUP) if "columns" in needs else ()
        own = (SELF_INFLUENCE,) if "self_influence" in needs else ()
        self._small = dict.fromkeys((FLAGS, *scale, *known, *own, *columns))

    def blocks(self, block_rows: int) -> Iterator[RowBlock]:
        for receipt in self.receipts:
            small = {
                name: self.run.read(receipt, name)
                for name in self._small
                if name in array_names(receipt)
            }
            start, count, done = receipt.start, len(small[FLAGS]), 0
            codes = self.run.read_blocks(receipt, ROWS, block_rows) if self.with_codes else None
            while done < count:
                stop = min(done + block_rows, count)
                part = {name: array[done:stop] for name, array in small.items()}
                yield RowBlock(
                    start=start + done,
                    codes=None if codes is None else next(codes),
                    scale=part.get(SCALE),
                    flags=part[FLAGS],
                    self_influence=part.get(SELF_INFLUENCE),
                    loss=part.get(LOSS),
                    group=part.get(GROUP),
                    columns={name: part[name] for name in self.columns},
                )
                done = stop


def query_tiles(run: OpenRun, example_set: str) -> list[tuple[int, int]]:
    """Return the ranges of queries that are scored at a time: all, where their rows fit in memory.

    Every tile reads the training rows once. The cut depends on the run alone, never on the
    machine, so that results do not.
    """
    count = run.example_set(example_set).count
    checkpoints = len(run.checkpoints)
    widths = [load_codec(run, checkpoint)[1].width for checkpoint in range(checkpoints)]
    size = max(_product.PADDING_ROWS, QUERY_BYTES // (4 * sum(widths)))
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def score_sides(
    run: OpenRun,
    device: str,
    example_set: str,
    damping: float | None,
    tile: tuple[int, int] | None = None,
    scale: str = "none",
) -> list[tuple[Codec, Tensor, float]]:
    """Return codec, queries in its coordinates and weight (1/n included) of every checkpoint.

    Args:
        tile: Range of queries; None takes all, and of an empty one no query is looked at.
        scale: Which may multiply queries, too.
    """
    checkpoints = run.checkpoints
    if tile == (0, 0):
        return _sides_without_queries(run, device)
    rows = content_digest(r for c in checkpoints for r in row_receipts(run, example_set, c))
    sketches = tuple(sketch_digest(run, c) for c in checkpoints)
    return _cached_sides(
        run.url, device, example_set, damping, tile, scale, (run.fingerprint, rows, *sketches)
    )


def _sides_without_queries(run: OpenRun, device: str) -> list[tuple[Codec, Tensor, float]]:
    codecs = [load_codec(run, checkpoint)[0].to(device) for checkpoint in run.checkpoints]
    return [
        (codec, torch.empty(0, codec.stored, device=device), factor)
        for codec, factor in zip(
            codecs, checkpoint_factors(run.method, run.train.count), strict=True
        )
    ]


@lru_cache(maxsize=1)
def _cached_sides(
    url: str,
    device: str,
    example_set: str,
    damping: float | None,
    tile: tuple[int, int] | None,
    scale: str,
    rests_on: tuple[str, ...],
) -> list[tuple[Codec, Tensor, float]]:
    """Return the sides; the digests tell runs and query sets of one name apart."""
    run = OpenRun.open(url)
    factors = checkpoint_factors(run.method, run.train.count)
    assert len(factors) == len(run.checkpoints), "a weight is missing"
    codecs, asked = [], []
    for checkpoint in run.checkpoints:
        codec, preconditioner = load_codec(run, checkpoint)
        queries = query_rows(run, example_set, checkpoint, tile)
        codecs.append(codec)
        asked.append(queries if damping is None else preconditioner.redamp(queries, damping))
    if feature_of(run.method).centred:
        asked = centred(asked, factors)
    if (chosen := scale_of(scale)) is not None:
        asked = scaled_queries(run, example_set, asked, chosen, tile)
    return [
        (codec.to(device), codec.query(queries).to(device), factor)
        for codec, queries, factor in zip(codecs, asked, factors, strict=True)
    ]


def query_rows(
    run: OpenRun, example_set: str, checkpoint: int, tile: tuple[int, int] | None = None
) -> Tensor:
    """Return the whitened float32 rows of a query set, or a tile of it, ``(query, feature)``.

    Raises:
        NonFiniteError: If a query was NaN or infinite; its scores would mean nothing.
        IncompleteError: If one is missing.
    """
    ordered = row_receipts(run, example_set, checkpoint)
    flags = np.concatenate([run.read(receipt, FLAGS) for receipt in ordered])
    if flags.any():
        bad = np.flatnonzero(flags)[:8].tolist()
        raise NonFiniteError(
            f"queries {bad} of {example_set!r} gave NaN or infinite rows at checkpoint {checkpoint}; "
            f"remove them from the query set"
        )
    low, high = tile or (0, ordered[-1].stop)
    pieces = [
        run.read(receipt, ROWS, rows=slice(max(low - receipt.start, 0), high - receipt.start))
        for receipt in ordered
        if receipt.start < high and receipt.stop > low
    ]
    rows = np.concatenate(pieces or [run.read(ordered[0], ROWS)[:0]])
    assert len(rows) == high - low, "partitions that follow each other hold every query"
    return torch.from_numpy(rows)


def partition_scores(
    run_path: str,
    example_set: str,
    damping: float | None,
    partition: int,
    tile: tuple[int, int] | None = None,
    scale: str = "none",
) -> np.ndarray:
    """Return the scores of one partition, shape ``(example, query)``; quarantined rows are NaN.

    Args:
        tile: Range of queries; None takes all, whose rows are then held a tile at a time.
    """
    run = OpenRun.open(run_path)
    tiles = [tile] if tile is not None else query_tiles(run, example_set)
    pieces = [
        np.where(block.valid[:, None], block.scores, np.float32(np.nan))
        for tile in tiles
        for block in tile_blocks(run, example_set, damping, [partition], tile, scale=scale)
    ]
    rows = len(pieces) // len(tiles)
    columns = [np.concatenate(pieces[i : i + rows]) for i in range(0, len(pieces), rows)]
    return np.concatenate(columns, axis=1)


def tile_blocks(
    run: OpenRun,
    example_set: str,
    damping: float | None,
    partitions: Sequence[int],
    tile: tuple[int, int],
    chosen: np.ndarray | None = None,
    scale: str = "none",
) -> Iterator[ScoreBlock]:
    """Yield the scores of some partitions for the queries of one tile; blocks reuse their arrays.

    Args:
        chosen: Only these queries of the tile, counted from its first.
    """
    by = scale_of(scale)
    columns = by.columns if by else ()
    terms = [
        Term(
            StoredRows(
                run,
                row_receipts(run, "train", checkpoint, partitions),
                ("scores", "columns"),
                columns,
            ),
            codec,
            queries if chosen is None else queries[chosen],
            weight,
        )
        for checkpoint, (codec, queries, weight) in enumerate(
            score_sides(run, "cpu", example_set, damping, tile, scale)
        )
    ]
    block_rows = _product.rows_per_block(len(terms[0].queries))
    return _product.score_blocks(terms, block_rows, scale=by)


def partition_rows(run_path: str, example_set: str, checkpoint: int, partition: int) -> np.ndarray:
    """Return the rows of one partition in stored coordinates, float32, shape ``(example, coordinate)``.

    Training rows are decoded; queries are rotated as training rows are before they are stored, so
    inner products of both are the scores of this checkpoint times n.
    """
    run = OpenRun.open(run_path)
    (receipt,) = row_receipts(run, example_set, checkpoint, [partition])
    rows = torch.from_numpy(run.read(receipt, ROWS))
    codec, _ = load_codec(run, checkpoint)
    if example_set != "train":
        return codec.query(rows).numpy()
    scale = torch.from_numpy(run.read(receipt, SCALE))
    return codec.decode(Encoded(rows, scale)).numpy()


def row_width(run: OpenRun, checkpoint: int) -> int:
    """Return the number of stored coordinates of a row."""
    return load_codec(run, checkpoint)[0].stored
