"""The work units of score: read out some partitions of rows, then merge what was read out."""

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamfluence.codecs.base import Codec, Encoded
from streamfluence.errors import InputError, NonFiniteError
from streamfluence.layout import collect_stage
from streamfluence.readouts.base import Arrays, Readout
from streamfluence.registry import member
from streamfluence.stages import _product
from streamfluence.stages._session import load_codec
from streamfluence.stages._sets import set_facts
from streamfluence.store import Receipt, RunStore, array_names

QUERY_BYTES = 256 << 20  # of query rows held at once, all checkpoints together


class StoredRows:
    """The rows of some partitions of the training set at one checkpoint, read a block at a time."""

    def __init__(
        self, store: RunStore, checkpoint: int, partitions: list[int], with_codes: bool
    ) -> None:
        self.store, self.partitions, self.with_codes = store, partitions, with_codes
        self.stage = collect_stage("train", checkpoint)

    def blocks(self, block_rows: int) -> Iterator[_product.RowBlock]:
        for partition in self.partitions:
            receipt = self.store.receipt(self.stage, partition)
            assert receipt is not None, "score checks that every partition is there"
            small = {
                name: self.store.read(receipt, name)
                for name in ("scale", "flags", "self_influence", "loss", "group")
                if name in array_names(receipt)
            }
            start, count, done = receipt.start, len(small["flags"]), 0
            codes = self.store.read_blocks(receipt, "rows", block_rows) if self.with_codes else None
            while done < count:
                stop = min(done + block_rows, count)
                part = {name: array[done:stop] for name, array in small.items()}
                yield _product.RowBlock(
                    start=start + done,
                    codes=None if codes is None else next(codes),
                    scale=part["scale"],
                    flags=part["flags"],
                    self_influence=part["self_influence"],
                    loss=part["loss"],
                    group=part.get("group"),
                )
                done = stop


def score(run_path: str, device: str, name: str, task: int) -> dict[str, int]:
    """Read out one task's partitions and commit its states; return counts for the progress report."""
    store = RunStore.open(run_path)
    spec = store.read_document(f"scores/{name}/score.json")
    readouts = build_readouts(spec, Path(store.manifest["root"]))
    needs_scores = any(readout.needs_scores for readout in readouts.values())
    tiles = query_tiles(store, spec["queries"]) if needs_scores else [(0, 0)]
    read = [
        _read_tile(run_path, device, spec, task, readouts, tile, needs_scores) for tile in tiles
    ]
    counts = [stop - start for start, stop in tiles]
    states = _joined(readouts, [states for states, _, _ in read], counts)
    kept = _joined(readouts, [kept for _, kept, _ in read], counts)
    arrays = {f"state.{key}": array for key, array in _flat(states).items()}
    arrays |= {f"example.{key}": array for key, array in _flat(kept).items()}
    facts = {"examples": read[0][2].examples, "invalid": max(each[2].invalid for each in read)}
    compressors = {key: "blosc-bitshuffle-zstd" for key in arrays if key.startswith("example.")}
    store.commit(f"score/{name}", task, arrays, {"score": name}, facts, compressors=compressors)
    return facts


def query_tiles(store: RunStore, example_set: str) -> list[tuple[int, int]]:
    """Return the ranges of queries that are scored at a time: all, where their rows fit in memory.

    Every tile reads the training rows once. The cut depends on the run alone, never on the
    machine, so that results do not.
    """
    count = set_facts(store, example_set)["count"]
    checkpoints = len(store.manifest["checkpoints"])
    widths = [len(load_codec(store, checkpoint)[1].values) for checkpoint in range(checkpoints)]
    size = max(_product.PADDING_ROWS, QUERY_BYTES // (4 * sum(widths)))
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def _read_tile(
    run_path: str,
    device: str,
    spec: Mapping[str, Any],
    task: int,
    readouts: Mapping[str, Readout],
    tile: tuple[int, int],
    needs_scores: bool,
) -> tuple[dict[str, Arrays], dict[str, Arrays], _product.Reading]:
    """Return the states of one task for some queries, what is stored per example, and the counts."""
    store = RunStore.open(run_path)
    terms = [
        _product.Term(
            StoredRows(store, checkpoint, spec["tasks"][task], needs_scores), codec, queries, weight
        )
        for checkpoint, (codec, queries, weight) in enumerate(
            score_sides(run_path, device, spec["queries"], spec["damping"], tile)
        )
    ]
    asked = terms[0].queries
    block_rows = _product.rows_per_block(len(asked), asked.device)
    blocks = (
        _product.score_blocks(terms, block_rows) if needs_scores else _product.plain_blocks(terms)
    )
    kept: dict[str, dict[str, list[np.ndarray]]] = {}

    def keep(readout: str, start: int, arrays: Arrays) -> None:
        for key, array in arrays.items():
            kept.setdefault(readout, {}).setdefault(key, []).append(array.copy())

    reading = _product.read_out(blocks, readouts, keep)
    whole = {
        readout: {key: np.concatenate(pieces) for key, pieces in arrays.items()}
        for readout, arrays in kept.items()
    }
    return reading.states, whole, reading


def _joined(
    readouts: Mapping[str, Readout], tiles: list[dict[str, Arrays]], counts: list[int]
) -> dict[str, Arrays]:
    """Return what was read out of all queries; nothing where a readout keeps nothing."""
    return {
        name: readouts[name].join([tile[name] for tile in tiles], counts) if first else {}
        for name, first in tiles[0].items()
    }


def merge(run_path: str, name: str) -> None:
    """Merge the states of all tasks in their order, and commit the results."""
    store = RunStore.open(run_path)
    spec = store.read_document(f"scores/{name}/score.json")
    readouts = build_readouts(spec, Path(store.manifest["root"]))
    receipts = store.receipts(f"score/{name}")
    readings = (_reading(store, receipts[task]) for task in range(len(spec["tasks"])))
    merged = _product.merge(readouts, readings)
    results = {key: readouts[key].finalize(state) for key, state in merged.states.items() if state}
    facts = {"examples": merged.examples, "invalid": merged.invalid}
    store.commit(f"scores/{name}", 0, _flat(results), {"score": name}, facts)


def build_readouts(spec: Mapping[str, Any], root: Path) -> dict[str, Readout]:
    """Return the readouts of a score, by name."""
    readouts = {}
    for name, options in spec["readouts"].items():
        if "subsets" in options:
            path = root / options["subsets"]
            if options["sha256"] != file_sha256(path):
                raise InputError(
                    f"{path} changed since these scores were asked for; score again under another --name"
                )
            options = {"subsets": path}
        readouts[name] = member("readouts", name)(**options)
    return readouts


def file_sha256(path: Path) -> str | None:
    """Return the digest of a file; None where it cannot be read, which its reader explains."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def score_sides(
    run_path: str,
    device: str,
    example_set: str,
    damping: float | None,
    tile: tuple[int, int] | None = None,
) -> list[tuple[Codec, Tensor, float]]:
    """Return codec, queries in its coordinates and weight (1/n included) of every checkpoint.

    Args:
        tile: Range of queries; None takes all.
    """
    store = RunStore.open(run_path)
    stages = [collect_stage(example_set, c) for c in range(len(store.manifest["checkpoints"]))]
    attempts = tuple(r.attempt for stage in stages for r in store.receipts(stage).values())
    return _cached_sides(run_path, device, example_set, damping, tile, store.fingerprint, attempts)


@lru_cache(maxsize=1)
def _cached_sides(
    run_path: str,
    device: str,
    example_set: str,
    damping: float | None,
    tile: tuple[int, int] | None,
    fingerprint: str,
    attempts: tuple[str, ...],
) -> list[tuple[Codec, Tensor, float]]:
    """Return the sides; fingerprint and attempts tell runs and query sets of one name apart."""
    store = RunStore.open(run_path)
    count = store.manifest["train"]["count"]
    sides = []
    weights = store.manifest["checkpoint_weights"]
    assert len(weights) == len(store.manifest["checkpoints"]), "a weight is missing"
    for checkpoint, weight in enumerate(weights):
        codec, factor = load_codec(store, checkpoint)
        queries = query_rows(store, example_set, checkpoint, tile)
        if damping is not None:
            queries = factor.redamp(queries, damping)
        sides.append((codec.to(device), codec.query(queries).to(device), weight / count))
    return sides


def query_rows(
    store: RunStore, example_set: str, checkpoint: int, tile: tuple[int, int] | None = None
) -> Tensor:
    """Return the whitened float32 rows of a query set, or a tile of it, ``(query, feature)``.

    Raises:
        NonFiniteError: If a query was NaN or infinite; its scores would mean nothing.
    """
    receipts = store.receipts(collect_stage(example_set, checkpoint))
    ordered = [receipts[partition] for partition in sorted(receipts)]
    flags = np.concatenate([store.read(receipt, "flags") for receipt in ordered])
    if flags.any():
        bad = np.flatnonzero(flags)[:8].tolist()
        raise NonFiniteError(
            f"queries {bad} of {example_set!r} gave NaN or infinite rows at checkpoint {checkpoint}; "
            f"remove them from the query set"
        )
    low, high = tile or (0, ordered[-1].stop)
    pieces = [
        store.read(receipt, "rows", rows=slice(max(low - receipt.start, 0), high - receipt.start))
        for receipt in ordered
        if receipt.start < high and receipt.stop > low
    ]
    return torch.from_numpy(np.concatenate(pieces or [store.read(ordered[0], "rows")[:0]]))


def _reading(store: RunStore, receipt: Receipt) -> _product.Reading:
    states: dict[str, Arrays] = {}
    for name in array_names(receipt):
        kind, _, rest = name.partition(".")
        if kind == "state":
            readout, _, key = rest.partition(".")
            states.setdefault(readout, {})[key] = store.read(receipt, name)
    return _product.Reading(states, receipt.facts["examples"], receipt.facts["invalid"])


def _flat(states: Mapping[str, Arrays]) -> Arrays:
    return {
        f"{readout}.{key}": array
        for readout, state in states.items()
        for key, array in state.items()
    }


def partition_scores(
    run_path: str, example_set: str, damping: float | None, partition: int
) -> np.ndarray:
    """Return the scores of one partition, shape ``(example, query)``; quarantined rows are NaN."""
    store = RunStore.open(run_path)
    terms = [
        _product.Term(StoredRows(store, checkpoint, [partition], True), codec, queries, weight)
        for checkpoint, (codec, queries, weight) in enumerate(
            score_sides(run_path, "cpu", example_set, damping)
        )
    ]
    blocks = _product.score_blocks(terms, _product.rows_per_block(len(terms[0].queries)))
    return np.concatenate(
        [np.where(b.valid[:, None], b.scores, np.float32(np.nan)) for b in blocks]
    )


def partition_rows(run_path: str, example_set: str, checkpoint: int, partition: int) -> np.ndarray:
    """Return the decoded rows of one partition, float32, shape ``(example, coordinate)``."""
    store = RunStore.open(run_path)
    receipt = store.receipt(collect_stage(example_set, checkpoint), partition)
    assert receipt is not None
    rows = store.read(receipt, "rows")
    if example_set != "train":
        return rows
    codec, _ = load_codec(store, checkpoint)
    scale = torch.from_numpy(store.read(receipt, "scale"))
    return codec.decode(Encoded(torch.from_numpy(rows), scale)).numpy()


def row_width(store: RunStore, example_set: str, checkpoint: int) -> int:
    """Return the number of coordinates of a decoded row."""
    codec, factor = load_codec(store, checkpoint)
    return codec.stored if example_set == "train" else len(factor.values)
