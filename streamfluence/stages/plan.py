"""What a job will cost, measured by doing a little of it for real, before anything is queued.

The probe runs the job's own code on a few batches, in a process of its own (so
that its peak memory is a worker's), in a temporary run that is thrown away.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from streamfluence import budget
from streamfluence.layout import Span
from streamfluence.manifest import Job, load_job
from streamfluence.stages import _collect_tasks, _sketch_tasks
from streamfluence.stages._resolve import open_run
from streamfluence.stages._sample import TASKS
from streamfluence.stages._session import directions, session
from streamfluence.stages.run import execution_of
from streamfluence.stages.sketch import sketch

PROBE_BATCHES = 4


def plan(
    job_path: str | Path, run_path: str, overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return what the job will cost.

    Returns:
        ``disk_bytes``, ``files``, ``peak_bytes`` (of one worker), ``passes``, ``seconds``, with what
        they were computed from: ``examples``, ``checkpoints``, ``row_bytes``, ``workers``, ...

    Raises:
        BudgetError: If that exceeds the free disk space or ``compute.memory``.
        StreamfluenceError: Whatever the first batches of the job itself would raise.
    """
    job = load_job(Path(job_path), overrides)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        probe = pool.submit(_probe, job).result()
    execution = execution_of(job)
    partitions = -(-probe["examples"] // probe["partition_examples"])
    workers = execution.worker_count(partitions)
    checkpoints = probe["checkpoints"]
    sketched = min(job.sketch.examples, probe["examples"])
    seconds = checkpoints * (
        probe["sketch_fixed_seconds"]
        + sketched * probe["sketch_seconds_per_example"] / min(workers, TASKS)
        + probe["examples"] * probe["collect_seconds_per_example"] / workers
    )
    stored = budget.disk_bytes(probe["examples"], probe["row_bytes"], checkpoints)
    cost = budget.Cost(
        disk_bytes=stored + checkpoints * probe["sketch_bytes"],
        files=budget.file_count(partitions, checkpoints),
        peak_bytes=probe["peak_bytes"],
        passes=checkpoints,
        seconds=round(seconds, 1),
    )
    budget.refuse_what_does_not_fit(cost, run_path, execution.memory)
    return {**cost.table(), "partitions": partitions, "workers": workers, **probe}


def _probe(job: Job) -> dict[str, Any]:
    """Run the first batches of a job in a temporary run; return what was measured."""
    size = job.compute.batch_size
    short = replace(
        job,
        queries={},
        sketch=replace(job.sketch, examples=size * PROBE_BATCHES),
        compute=replace(job.compute, executor="serial", workers=1, dask=None),
    )
    execution = execution_of(short)
    device = execution.resolved_device()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "run")
        store = open_run(short, path, digest=False)
        facts = store.manifest["train"]
        started = time.monotonic()
        sketch(path, execution)
        sketch_seconds = time.monotonic() - started
        made, opened = directions(path, device, 0), session(path, device)
        rows = min(facts["count"], size * PROBE_BATCHES)
        rate = _time_collect(opened, made, rows)
        return {
            "examples": facts["count"],
            "checkpoints": opened.checkpoint_count(),
            "partition_examples": facts["partition_examples"],
            "row_bytes": made.codec.stored_bytes,
            "directions": opened_width(made),
            "sketch_bytes": sum(f.stat().st_size for f in Path(path).rglob("*") if f.is_file()),
            "sketch_fixed_seconds": round(_fixed(sketch_seconds, rate, rows), 3),
            "sketch_seconds_per_example": sketch_seconds / rows,
            "collect_seconds_per_example": rate,
            "peak_bytes": _peak_bytes() + _partition_bytes(facts, made.codec.stored_bytes),
            "device": device,
        }


def opened_width(made: Any) -> int:
    """Return the number of directions rows are whitened in."""
    return sum(part.width for part in made.projection.parts)


def _time_collect(opened: Any, made: Any, rows: int) -> float:
    """Return seconds an example of the real collect code takes, after one warm-up."""
    times = []
    for _ in range(3):
        started = time.monotonic()
        _collect_tasks.partition_arrays(opened, made, "train", 0, Span(0, rows))
        times.append((time.monotonic() - started) / rows)
    return sorted(times)[1]


def _fixed(sketch_seconds: float, rate: float, rows: int) -> float:
    """Return the part of the sketch that does not grow with the sample, by the cost of its gradients."""
    return max(0.0, sketch_seconds - rows * rate * _sketch_tasks.MOST_PROBES)


def _partition_bytes(facts: Mapping[str, Any], row_bytes: int) -> int:
    """Return what the finished rows of two partitions take: one is written while one is computed."""
    return 3 * facts["partition_examples"] * (row_bytes + 40)


def _peak_bytes() -> int:
    """Return this process's peak resident memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
