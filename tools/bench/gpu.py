"""Collect, score, and equality with the CPU, on one GPU. One line of JSON on stdout.

    python tools/bench/gpu.py collect [--net 124m|1b] [--precision bf16] [--profile]
    python tools/bench/gpu.py score [--rows 10000000] [--queries 1000]
    python tools/bench/gpu.py same

``collect`` times every step of the sketch of a few batches, then collect against plain forward and
backward as ``collect.py`` does. ``score`` times the stage's own code on stored rows. ``same`` makes
the same rows and the same lists of best examples on the CPU and on the device, and compares them.
``--gather-cost`` measures other choices between gathered pairs and whole rectangles. With
``--device cpu`` and small sizes all of it runs on a CPU.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from _nets import NETS, make
from _setup import setup
from collect import plain, seconds
from score import make_codec, make_run
from score import score as score_run
from torch import Tensor

from streamfluence.capture import Outer
from streamfluence.collecting.decision import decision_of
from streamfluence.collecting.units import measured_rows, partition_arrays
from streamfluence.job import Job
from streamfluence.job_parser import load_job
from streamfluence.layout import Span
from streamfluence.projections import _directions
from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.run.resolve import open_run
from streamfluence.run.session import open_session
from streamfluence.sketching import steps as sketching
from streamfluence.stages.run import execution_of

ROW_BYTES = 256


def sketch_all(path: str, job: Job) -> None:
    """Do what is missing of the sketch of a run."""
    execution = execution_of(job)
    sketching.sketch_missing(open_session(path, execution.resolved_device()), execution)


def prepare(folder: Path, options: argparse.Namespace, device: str, precision: str) -> tuple:
    """Make a run of a few batches of random tokens; return its path, its job and the weights."""
    net = NETS[options.net]
    batch = options.batch or net.batch
    weights = make(
        folder, net, batch * options.batches, options.side_limit,
        sample=batch * options.sample_batches, row_bytes=ROW_BYTES, batch=batch,
        precision=precision, device=device, threads=options.threads, optimizer="sgd",
    )  # fmt: skip
    job, path = load_job(folder / "job.toml"), str(folder / "run")
    open_run(job, path)
    return path, job, weights, batch


def collect(options: argparse.Namespace) -> dict[str, Any]:
    """Return seconds of every step of the sketch, and collect beside forward and backward."""
    device, half = options.device, options.precision == "bf16"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, job, weights, batch = prepare(folder, options, device, options.precision)
        steps: dict[str, float] = {}
        with timed_steps(steps, device):
            sketch_all(path, job)
        sketch_peak = peak_gib(device)
        torch.set_num_threads(options.threads)
        session = open_session(path, device)
        at = AtCheckpoint(session, 0)
        decision, model = decision_of(at), at.model
        span = Span(0, batch * options.batches)

        def ours() -> None:
            partition_arrays(decision, "train", span)

        def theirs() -> None:
            plain(session, model, span, batch, half)

        found = {
            "weights": weights,
            "batch": batch,
            "sketch_seconds": round(sum(steps.values()), 1),
            "sketch_steps": steps,
            "sketch_stored_mb": stored_mb(folder / "run"),
            "sketch_peak_gib": sketch_peak,
            **side_by_side(ours, theirs, options),
            "rectangles": rectangles(decision.projection),
        }
        if options.profile:
            found["profile"] = profile(ours, options.batches, device)
            found["profile_plain"] = profile(theirs, options.batches, device)
        tokens = len(span) * NETS[options.net].length
        plain_tflops = 6 * weights * tokens / found["plain_seconds"] / 1e12
        return {
            **found,
            "collect_tokens_per_second": tokens / found["collect_seconds"],
            "plain_tokens_per_second": tokens / found["plain_seconds"],
            "plain_tflops": plain_tflops,
        }


def side_by_side(ours: Callable, theirs: Callable, options: argparse.Namespace) -> dict[str, Any]:
    """Return medians of alternating repetitions, the first left out, and the peak of each."""
    pairs, peaks = [], {}
    for _ in range(options.repeats + 1):
        pair = []
        for name, function in (("collect", ours), ("plain", theirs)):
            peak_gib(options.device, reset=True)
            pair.append(seconds(function, options.device))
            peaks[name] = peak_gib(options.device)
        pairs.append(pair)
    pairs = pairs[1:]
    mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "collect_seconds": mine,
        "plain_seconds": other,
        "ratio": statistics.median(p[1] / p[0] for p in pairs),
        "ratios": [round(p[1] / p[0], 3) for p in pairs],
        "peak_gib": peaks,
    }


def score(options: argparse.Namespace) -> dict[str, Any]:
    """Return the time of scoring stored rows, top-k included."""
    with tempfile.TemporaryDirectory() as folder:
        codec = make_codec("bands", ROW_BYTES)
        torch.manual_seed(0)
        queries = codec.query(torch.randn(options.queries, 8 * ROW_BYTES))
        make_run(folder, codec, options.rows, options.partition_rows, ROW_BYTES)
        moved, asked = codec.to(options.device), queries.to(options.device)
        peak_gib(options.device, reset=True)
        times = [
            seconds(lambda: score_run(folder, moved, asked, options.top), options.device)
            for _ in range(options.repeats + 1)
        ]
        best = statistics.median(times[1:] or times)
        found = {"seconds": best, "all_seconds": [round(t, 3) for t in times]}
        if options.profile:
            found["profile"] = profile(
                lambda: score_run(folder, moved, asked, options.top), 1, options.device
            )
        return {
            **found,
            "pairs_per_second": options.rows * options.queries / best,
            "peak_gib": peak_gib(options.device),
        }


def same(options: argparse.Namespace) -> dict[str, Any]:
    """Return how far rows and lists made on the device are from those made on the CPU."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, job, _, batch = prepare(folder / "a", options, "cpu", "float32")
        sketch_all(path, job)
        here, there = (rows_of(path, device, batch) for device in ("cpu", options.device))
        errors = {
            "row_error": float(relative(there.pop("rows"), expected := here.pop("rows")).max())
        }
        errors |= {f"{key}_error": float(relative(there[key], here[key]).max()) for key in here}
        path, job, _, batch = prepare(folder / "b", options, options.device, "float32")
        sketch_all(path, job)
        other, gram = rows_of(path, options.device, batch)["rows"], expected @ expected.T
        errors["score_error_of_a_sketch_made_on_the_device"] = float(
            (other @ other.T - gram).norm() / gram.norm()
        )
        path, job, _, batch = prepare(folder / "c", options, options.device, "bf16")
        sketch_all(path, job)
        errors["row_error_of_products_with_bf16_sides"] = half_error(path, options.device, batch)
    return {**errors, **same_lists(options)}


def rows_of(path: str, device: str, examples: int) -> dict[str, Tensor]:
    """Return the rows of the first batch before they are coded, and what is stored beside them."""
    session = open_session(path, device)
    decision = decision_of(AtCheckpoint(session, 0))
    batch = session.batch(session.reader("train").read(0, examples))
    whitened, facts = measured_rows(decision, decision.at.feature, batch, "loss")
    found = {"rows": decision.preconditioner.for_rows(whitened), **facts}
    return {
        key: found[key].double().cpu() for key in ("rows", "loss", "grad_norm", "self_influence")
    }


def half_error(path: str, device: str, examples: int) -> float:
    """Return how far features of bfloat16 sides are from products of the same sides in float32."""
    session = open_session(path, device)
    decision = decision_of(AtCheckpoint(session, 0))
    batch = session.batch(session.reader("train").read(0, examples))
    uses = decision.scales.apply(decision.at.feature.measure(batch).uses)
    floats = {
        name: [Outer(use.left, use.right) if isinstance(use, Outer) else use for use in some]
        for name, some in uses.items()
    }
    found, expected = (decision.projection.apply(each).double().cpu() for each in (uses, floats))
    return float(relative(found, expected).max())


def same_lists(options: argparse.Namespace) -> dict[str, Any]:
    """Return whether top-k of the same stored rows lists the same examples, and how scores differ."""
    with tempfile.TemporaryDirectory() as folder:
        codec = make_codec("bands", ROW_BYTES)
        torch.manual_seed(0)
        queries = codec.query(torch.randn(options.queries, 8 * ROW_BYTES))
        make_run(folder, codec, options.rows, options.partition_rows, ROW_BYTES)
        states = [
            score_run(folder, codec.to(device), queries.to(device), options.top).states["top_k"]
            for device in ("cpu", options.device)
        ]
    here, there = ({key: torch.from_numpy(value) for key, value in s.items()} for s in states)
    equal = [(here[key] == there[key]).float().mean() for key in ("positive_rows", "negative_rows")]
    error = (here["positive_scores"] - there["positive_scores"]).abs().max()
    return {
        "equal_places_of_lists": float(min(equal)),
        "score_error_of_lists": float(error / here["positive_scores"].abs().max()),
    }


def relative(found: Tensor, expected: Tensor) -> Tensor:
    """Return the relative error of every row."""
    rows, wanted = (each.reshape(len(each), -1) for each in (found, expected))
    return (rows - wanted).norm(dim=1) / wanted.norm(dim=1).clamp_min(1e-30)


@contextmanager
def timed_steps(steps: dict[str, float], device: str) -> Iterator[None]:
    """Put the seconds of every step of the sketch into ``steps``."""
    untimed = sketching.do_step

    def timed(executor, at, step, parts):
        def do() -> None:
            untimed(executor, at, step, parts)

        steps[step.stage] = round(seconds(do, device), 2)

    sketching.do_step = timed
    try:
        yield
    finally:
        sketching.do_step = untimed


def rectangles(projection: Any) -> list[list[int]]:
    """Return rows, columns and directions of every block whose pairs are computed."""
    kept = projection._pairs._kept.values()
    return [[*directions.rectangle, directions.width] for directions in kept]


def stored_mb(run: Path) -> dict[str, float]:
    """Return the megabytes that every step of the sketch stored."""
    return {
        step.name: round(sum(f.stat().st_size for f in step.rglob("*") if f.is_file()) / 1e6, 1)
        for step in sorted((run / "parts/sketch/0").iterdir())
    }


def peak_gib(device: str, reset: bool = False) -> float:
    """Return the most memory of the device that tensors took; 0 on a CPU."""
    if device == "cpu":
        return 0.0
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return round(torch.cuda.max_memory_allocated() / 2**30, 2)


def profile(function: Callable, batches: int, device: str) -> dict[str, Any]:
    """Return kernels launched a batch, and milliseconds and calls of those that take longest."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device != "cpu" else [])]
    with profiler(activities=kinds) as found:
        seconds(function, device)
    events = found.key_averages()
    launches = sum(e.count for e in events if "LaunchKernel" in e.key)
    kernels = [e for e in events if e.device_type.name == "CUDA"]
    busy = sum(e.self_device_time_total for e in kernels) / 1e3
    longest = sorted(kernels, key=lambda e: -e.self_device_time_total)[:40]
    return {
        "launches_a_batch": launches / batches,
        "device_milliseconds_a_batch": round(busy / batches, 2),
        "longest": [
            [short(e.key), round(e.self_device_time_total / 1e3 / batches, 3), e.count / batches]
            for e in longest
        ],
    }


def short(kernel: str) -> str:
    """Return what tells a kernel's name from others: its beginning and its end."""
    return kernel if len(kernel) <= 140 else f"{kernel[:70]} ... {kernel[-65:]}"


def driver() -> str | None:
    """Return the version of the NVIDIA driver, if there is one."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["collect", "score", "same"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--net", choices=sorted(NETS), default="124m")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--batch", type=int, help="sequences; by default as the net has it")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--sample-batches", type=int, default=1)
    parser.add_argument("--side-limit", type=int, default=512)
    parser.add_argument("--gather-cost", type=int, help="by default that of the device")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--partition-rows", type=int, default=131_072)
    parser.add_argument("--top", type=int, default=100)
    return parser.parse_args()


def main() -> None:
    options, started = parse(), time.perf_counter()
    torch.set_num_threads(options.threads)
    if options.gather_cost:
        _directions._GATHER_COST = dict.fromkeys(("cpu", "cuda"), options.gather_cost)
    found = {"collect": collect, "score": score, "same": same}[options.what](options)
    about = {**setup(options.device), "driver": driver()}
    print(
        json.dumps(
            {
                "what": options.what,
                "setup": about,
                "options": vars(options),
                **found,
                "wall_seconds": round(time.perf_counter() - started, 1),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
