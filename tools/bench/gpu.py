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
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from _gpu_runs import prepare, sketch_all, stored_rows
from _gpu_same import same
from _gpu_watch import driver, peak_gib, profile, rectangles, stored_mb, timed_steps
from _nets import NETS
from _setup import setup
from collect import plain, seconds
from score import score as score_run

from streamfluence.collecting.decision import decision_of
from streamfluence.collecting.units import partition_arrays
from streamfluence.layout import Span
from streamfluence.projections import _directions
from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.run.session import open_session


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
        codec, queries = stored_rows(folder, options)
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
