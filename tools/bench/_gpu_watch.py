"""What a device did: seconds and bytes of every step of a sketch, peak memory, kernels, driver."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from collect import seconds

from streamfluence.executors.base import Executor
from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.sketching import steps as sketching


@contextmanager
def timed_steps(steps: dict[str, float], device: str) -> Iterator[None]:
    """Put the seconds of every step of the sketch into ``steps``."""
    untimed = sketching.do_step

    def timed(executor: Executor, at: AtCheckpoint, step: sketching.Step, parts: int) -> None:
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


def profile(function: Callable[[], Any], batches: int, device: str) -> dict[str, Any]:
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
