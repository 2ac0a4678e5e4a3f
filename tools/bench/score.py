"""Time and memory of scoring stored rows, against a bare loop over the same bytes.

    python tools/bench/score.py [--rows 1000000] [--row-bytes 256] [--queries 64] [--top 100]

The score side is the stage's own code on a real run directory: receipts, checksums, the codec's
product, top-k. The bare loop reads the same files into one buffer, unpacks with the same codec
and multiplies with torch.mm; it checks nothing and keeps nothing. The two alternate in one
process; the figure is the median of the ratios. Memory is the peak over what the imports
take, in a process that only scores. JSON on stdout.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _setup import setup

from streamfluence.codecs.base import Codec, Encoded
from streamfluence.layout import Span, collect_stage, cut, default_partition_examples
from streamfluence.readouts.base import NEEDS
from streamfluence.readouts.top_k import TopK
from streamfluence.registry import member
from streamfluence.run.opened import OpenRun
from streamfluence.scoring.product import rows_per_block, score_blocks
from streamfluence.scoring.read_out import ReadOut, read_out
from streamfluence.scoring.stored import PartitionRows
from streamfluence.scoring.terms import Term
from streamfluence.store import RunStore
from streamfluence.store.grid import Grid

STAGE = collect_stage("train", 0)


def make_codec(name: str, row_bytes: int) -> Codec:
    """Return a codec for a spectrum that falls as those of trained networks do."""
    place = torch.arange(8 * row_bytes, dtype=torch.float64)
    kind = member("codecs", name)
    return kind(kind.allocate(1 / (1 + (place / (0.8 * row_bytes)) ** 1.5), row_bytes, 0))


def make_run(path: str, codec: Codec, rows: int, partition_rows: int, row_bytes: int) -> None:
    """Commit a run whose rows repeat 16,384 random ones in another order in every partition."""
    generator = np.random.default_rng(0)
    encoded = codec.encode(torch.randn(16_384, 8 * row_bytes))
    store = RunStore.create(path, {"benchmark": "score", "rows": rows})
    for number, span in enumerate(cut(Span(0, rows), partition_rows)):
        chosen = generator.integers(0, len(encoded.codes), len(span))
        arrays = {
            "rows": encoded.codes.numpy()[chosen],
            "scale": encoded.scale.numpy()[chosen],
            "flags": np.zeros(len(span), np.uint8),
            "self_influence": generator.random(len(span), np.float32),
            "loss": generator.random(len(span), np.float32),
            "grad_norm": generator.random(len(span), np.float32),
            "example_id": np.arange(span.start, span.stop),
        }
        store.commit(STAGE, number, arrays, facts={"start": span.start, "stop": span.stop})


def score(path: str, codec: Codec, queries: torch.Tensor, top: int) -> ReadOut:
    """Score every partition in one task, top-k included, and return what was read out."""
    store = OpenRun.open(path)
    source = PartitionRows(store, [r for _, r in sorted(store.receipts(STAGE).items())], NEEDS)
    block_rows = rows_per_block(len(queries), queries.device)
    blocks = score_blocks([Term(source, codec, queries, 1e-6)], block_rows)
    result = read_out(blocks, {"top_k": TopK(k=top)}, lambda *_: None)
    assert (result.states["top_k"]["positive_rows"] >= 0).all() and not result.invalid
    return result


class Part(NamedTuple):
    """Where the codes and the scales of one partition lie, and how they are cut."""

    codes: Grid
    scales: Grid
    codes_folder: Path
    scales_folder: Path


class Bare:
    """Files of codes and scales, and buffers for one inner chunk."""

    def __init__(self, path: str, codec: Codec, queries: torch.Tensor) -> None:
        store = OpenRun.open(path)
        self.codec, self.queries, self.parts = codec, queries, []
        for _, receipt in sorted(store.receipts(STAGE).items()):
            codes, scales = (store.reader(receipt, name).grid for name in ("rows", "scale"))
            assert scales.n_objects == 1, "scales of a partition are read in one piece"
            folder = Path(path, receipt.path)
            self.parts.append(Part(codes, scales, folder / "rows", folder / "scale"))
        most = max(part.codes.inner_rows for part in self.parts)
        self.codes = bytearray(max(part.codes.inner_bytes for part in self.parts))
        self.scales = bytearray(max(part.scales.inner_bytes for part in self.parts))
        self.rows = torch.empty(most, queries.shape[1])
        self.scores = torch.empty(most, len(queries))

    def run(self, decoded: bool) -> None:
        """Read, unpack and multiply everything: with ``decode`` and ``mm``, or the codec's product."""
        for part in self.parts:
            scale = self._scale(part)
            for index in range(part.codes.n_objects):
                name = part.codes_folder / part.codes.key(index)
                with open(name, "rb", buffering=0) as file:
                    self._object(file, part.codes, index, scale, decoded)

    def _scale(self, part: Part) -> torch.Tensor:
        with open(part.scales_folder / part.scales.key(0), "rb", buffering=0) as file:
            return read_rows(file, self.scales, part.scales, part.scales.rows)

    def _object(
        self, file: FileIO, grid: Grid, index: int, scale: torch.Tensor, decoded: bool
    ) -> None:
        for inner in range(grid.inner_of(index)):
            start = index * grid.object_rows + inner * grid.inner_rows
            count = min(grid.inner_rows, grid.rows - start)
            file.seek(inner * grid.stride)
            codes = read_rows(file, self.codes, grid, count)
            encoded = Encoded(codes, scale[start : start + count])
            if decoded:
                rows = self.codec.decode(encoded, out=self.rows[:count])
                torch.mm(rows, self.queries.T, out=self.scores[:count])
            else:
                self.codec.product(self.queries, encoded, out=self.scores[:count])


def read_rows(file: FileIO, buffer: bytearray, grid: Grid, count: int) -> torch.Tensor:
    """Return the next ``count`` rows of a file, in ``buffer``."""
    view = memoryview(buffer)[: count * grid.row_bytes]
    file.readinto(view)
    return torch.from_numpy(np.frombuffer(view, grid.dtype).reshape(count, -1))


def peak_bytes() -> int:
    """Return this process's highest resident size; ru_maxrss would count the parent's, too."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def compare(path: str, codec: Codec, queries: torch.Tensor, options) -> dict:
    """Return medians over alternating repetitions."""
    bare = Bare(path, codec, queries)
    score(path, codec, queries, options.top)
    bare.run(decoded=True)
    times = [
        (
            seconds(score, path, codec, queries, options.top),
            seconds(bare.run, True),
            seconds(bare.run, False),
        )
        for _ in range(options.repetitions)
    ]
    ours, decoded, product = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "score_seconds": ours,
        "bare_seconds": decoded,
        "bare_with_codec_product_seconds": product,
        "ratio": statistics.median(t[0] / t[1] for t in times),
        "ratio_to_bare_with_codec_product": statistics.median(t[0] / t[2] for t in times),
        "rows_per_second": options.rows / ours,
    }


def memory(path: str, options) -> dict:
    """Return the peak memory of scoring in a process of its own."""
    ended = subprocess.run(
        [sys.executable, __file__, "--measure-memory", path, *sys.argv[1:]],
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(ended.stdout)


def measure_memory(path: str, codec: Codec, queries: torch.Tensor, options) -> dict:
    before = peak_bytes()
    score(path, codec, queries, options.top)
    return {"imports_mib": before / 2**20, "over_imports_mib": (peak_bytes() - before) / 2**20}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--row-bytes", type=int, default=256)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--top", type=int, default=100)
    parser.add_argument("--codec", default="bands")
    parser.add_argument("--partition-rows", type=int, help="by default as a job cuts them")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure-memory", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    codec = make_codec(options.codec, options.row_bytes)
    queries = codec.query(torch.randn(options.queries, 8 * options.row_bytes))
    if options.measure_memory:
        found = measure_memory(options.measure_memory, codec, queries, options)
        print(json.dumps(found))
        return
    partition_rows = options.partition_rows or default_partition_examples(options.rows, 64)
    with tempfile.TemporaryDirectory() as folder:
        make_run(folder, codec, options.rows, partition_rows, options.row_bytes)
        result = {
            "setup": setup(),
            **{name: value for name, value in vars(options).items() if name != "measure_memory"},
            "partition_rows": partition_rows,
            "codec_facts": codec.facts(),
            **compare(folder, codec, queries, options),
            **memory(folder, options),
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
