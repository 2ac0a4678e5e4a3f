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
from streamfluence.budget import Stored
from streamfluence.collecting import units as _collect_tasks
from streamfluence.collecting.decision import Decision, decision_of
from streamfluence.data import open_reader
from streamfluence.errors import InputError
from streamfluence.job import Job
from streamfluence.layout import PARTS, RECEIPTS, Span, sketch_stage
from streamfluence.readouts.base import Readout
from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.run.example_set import ExampleSet
from streamfluence.run.manifest import Method
from streamfluence.run.readouts import open_readouts, pin_readouts
from streamfluence.run.resolve import open_run
from streamfluence.run.rows import StoredRows
from streamfluence.run.session import open_session
from streamfluence.run.source import ROWS_SOURCE
from streamfluence.scoring.source import check_source, pinned_source, refuse_unfit
from streamfluence.scoring.spec import TASK_ROWS
from streamfluence.scoring.streamed_cost import Streaming, probed
from streamfluence.short_forms import readout_options
from streamfluence.sketching.sample import BATCHES_PER_TASK, TASKS
from streamfluence.sketching.steps import steps_of
from streamfluence.sketching.sweep import MOST_PROBES
from streamfluence.stages.run import asked_of, execution_of, job_here
from streamfluence.stages.sketch import sketch

PROBE_BATCHES = 4
_KNOWN_COSTS = (ROWS_SOURCE, "streamed")
STARTS = 3  # sketch, collect and score each start their workers
_DOCUMENTS = Stored(5)  # the manifest, the place, and what pins the training set
_DOCUMENTS_A_SET = Stored(3)  # what pins a query set and its score
_FILES_PER_READOUT = 13  # arrays of a state, each with its metadata; measured on top_k


def plan(
    job_path: str | Path, run_path: str, overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return what the job will cost.

    Returns:
        ``disk_bytes``, ``files``, ``peak_bytes`` (of one worker), ``passes``, ``seconds``, with what
        they were computed from: ``examples``, ``checkpoints``, ``workers``, ..., and ``row_bytes`` or,
        of a job that stores no rows, what ``Streaming.table`` says.

    Raises:
        InputError: If it is of a source of scores whose cost is not known.
        BudgetError: If that exceeds the free disk space or ``compute.memory``.
        StreamfluenceError: Whatever the first batches of the job itself would raise.
    """
    job = job_here(job_path, overrides)
    execution = execution_of(job)
    execution.check()
    check_source(job.score)
    if job.score.source not in _KNOWN_COSTS:
        raise InputError(
            f"plan knows the cost of {' and '.join(_KNOWN_COSTS)} alone, and score.source = "
            f"{job.score.source!r}; run the job: its first messages say how far it is"
        )
    started = time.monotonic()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        probe = pool.submit(_probe, job).result()
    start_seconds = time.monotonic() - started - probe.pop("probe_seconds")
    partitions = -(-probe["examples"] // probe["partition_examples"])
    workers = execution.worker_count(partitions, job.compute.threads)
    streaming: Streaming | None = probe.pop("streaming")
    sketched = min(job.sketch.examples, probe["examples"])
    seconds = STARTS * start_seconds + probe["checkpoints"] * (
        probe["sketch_fixed_seconds"]
        + sketched * probe["sketch_seconds_per_example"] / min(workers, TASKS)
    )
    if streaming is None:
        passes = probe["checkpoints"]
        seconds += passes * _collect_seconds(probe) / workers
        found: dict[str, Any] = {}
    else:
        found = streaming.table(probe["examples"], sketched, workers)
        passes, after = found.pop("passes"), found.pop("seconds")
        found["seconds_at_most"] = round(seconds + found["seconds_at_most"], 1)
        seconds += after
    stored = Stored(probe.pop("stored_files"), probe.pop("stored_bytes"))
    cost = budget.Cost(
        disk_bytes=stored.nbytes,
        files=stored.files,
        peak_bytes=probe["peak_bytes"],
        passes=passes,
        seconds=round(seconds, 1),
    )
    budget.refuse_what_does_not_fit(cost, run_path, execution.memory)
    probe["queries"] = sum(probe["queries"].values())
    return {**cost.table(), "partitions": partitions, "workers": workers, **probe, **found}


def _collect_seconds(probe: Mapping[str, Any]) -> float:
    """Return the time of all rows at one checkpoint, on one worker."""
    rows = probe["examples"] + sum(probe["queries"].values())
    return float(rows * probe["collect_seconds_per_example"])


def _probe(job: Job) -> dict[str, Any]:
    """Run the first batches of a job in a temporary run; return what was measured."""
    begun, size = time.monotonic(), job.compute.batch_size
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
        run = open_run(short, path, digest=False, device=device)
        train = run.train
        started = time.monotonic()
        sketch(path, execution)
        sketch_seconds = time.monotonic() - started
        session = open_session(path, device)
        at = AtCheckpoint(session, 0)
        decision = decision_of(at)
        rows = min(train.count, size * PROBE_BATCHES)
        rate = _time_collect(decision, rows)
        fixed = _fixed(sketch_seconds, rate, rows)
        queries = {
            name: open_reader(dict(table), job.root).count() for name, table in job.queries.items()
        }
        most_rows = at.projection().most_rows
        sketched = _sketch_stored(Path(path), run.method, job, train.count, most_rows)
        common = {
            "examples": train.count,
            "queries": queries,
            "checkpoints": len(session.run.checkpoints),
            "partition_examples": train.partition_examples,
            "sketch_bytes": sketched.nbytes,
            "sketch_fixed_seconds": round(fixed, 3),
            "sketch_seconds_per_example": (sketch_seconds - fixed) / rows,
            "device": device,
        }
        if job.score.source == ROWS_SOURCE:
            own = _of_rows(Path(path), decision, job, queries, sketched)
            own |= {"collect_seconds_per_example": rate, "streaming": None}
        else:
            own = _of_streamed(at, job, queries, sketched)
        return {**common, **own, "probe_seconds": time.monotonic() - begun}


def _of_rows(
    path: Path, decision: Decision, job: Job, queries: Mapping[str, int], sketched: Stored
) -> dict[str, Any]:
    """Return what of the cost is that of rows."""
    stored = _stored(path, decision, job, queries, sketched)
    train, row_bytes = decision.at.session.run.train, decision.codec.stored_bytes
    return {
        "row_bytes": row_bytes,
        "directions": direction_count(decision),
        "stored_files": stored.files,
        "stored_bytes": stored.nbytes,
        "peak_bytes": _peak_bytes() + _partition_bytes(train, row_bytes),
    }


def _of_streamed(
    at: AtCheckpoint, job: Job, queries: Mapping[str, int], sketched: Stored
) -> dict[str, Any]:
    """Return what of the cost is that of gradients that stream by."""
    run = at.session.run
    asked = _pinned(job, run.train.count)
    spec = {"readouts": asked, **pinned_source(run, asked_of(job), {})}
    for name in queries:
        refuse_unfit(run, name, spec, job.score.scale)
    readouts = open_readouts(asked, job.root)
    streaming = probed(at, job, readouts, queries)
    total = sketched * len(run.checkpoints)
    for n in queries.values():
        nbytes = streaming.direction_bytes(n) * len(run.checkpoints)
        total += Stored(_FILES_PER_READOUT, nbytes)
        total += _score_stored(readouts, run.train.count, n) * (run.train.partitions + 1)
    total += _DOCUMENTS + _DOCUMENTS_A_SET * len(queries)
    return {
        "stored_files": total.files,
        "stored_bytes": total.nbytes,
        "peak_bytes": _peak_bytes() + streaming.peak_bytes(),
        "streaming": streaming,
    }


def _sketch_stored(
    path: Path, short: Method, job: Job, count: int, most_rows: int | None
) -> Stored:
    """Return what the sketch of one checkpoint takes: the probe's, its split steps once a task."""
    examples = min(job.sketch.examples, count)
    batches = -(-examples // job.compute.batch_size)
    tasks = min(TASKS, -(-batches // BATCHES_PER_TASK))
    total = Stored()
    for step in steps_of(short):
        here = Stored()
        for top in (PARTS, RECEIPTS):
            here += budget.stored_below(path / top / sketch_stage(0, step.stage))
        times = tasks if step.split else 1
        if step.grows:  # with the rows it holds, however many tasks share them
            held = min(examples, most_rows or examples)
            growth = held / min(short.sketch.examples, count)
            total += Stored(here.files * times, round(here.nbytes * growth))
        else:
            total += here * times
    return total


def _stored(
    path: Path,
    decision: Decision,
    job: Job,
    queries: Mapping[str, int],
    sketched: Stored,
) -> Stored:
    """Return what the whole run takes, from one partition of rows that is committed for real."""
    session = decision.at.session
    rows = min(session.run.train.count, job.compute.batch_size)
    arrays, notes = _collect_tasks.partition_arrays(decision, "train", Span(0, rows))
    of_train = StoredRows(session.run, "train", 0)
    _collect_tasks.commit(of_train, 0, Span(0, rows), arrays, notes)
    own = Stored()
    for top in (PARTS, RECEIPTS):
        own += budget.stored_below(path / top / "collect")
    row_bytes = decision.codec.stored_bytes
    partition = own + Stored(0, -budget.disk_bytes(rows, row_bytes, 1))
    count, size = session.run.train.count, session.run.train.partition_examples
    total = sketched + budget.rows_stored(count, -(-count // size), row_bytes, partition)
    for n in queries.values():
        total += budget.rows_stored(n, -(-n // size), 4 * direction_count(decision), partition)
    total = total * len(session.run.checkpoints)
    tasks, readouts = -(-count // TASK_ROWS), open_readouts(_pinned(job, count), job.root)
    prepared = sum(readout.prepared_bytes() for readout in readouts.values())
    for n in queries.values():
        total += _score_stored(readouts, count, n) * (tasks + 1)
        total += Stored(_FILES_PER_READOUT if prepared else 0, prepared)
    return total + _DOCUMENTS + _DOCUMENTS_A_SET * len(queries)


def _pinned(job: Job, count: int) -> dict[str, dict[str, Any]]:
    return pin_readouts(readout_options(job.score, job.readouts), job.root, count)


def _score_stored(readouts: Mapping[str, Readout], examples: int, queries: int) -> Stored:
    """Return what one task of one score takes; the merged result takes as much again."""
    total = Stored(2, 2048)
    for readout in readouts.values():
        total += Stored(_FILES_PER_READOUT, readout.result_bytes(examples, queries))
    return total


def direction_count(decision: Decision) -> int:
    """Return the number of directions rows are whitened in."""
    return sum(part.width for part in decision.projection.parts)


def _time_collect(decision: Decision, rows: int) -> float:
    """Return seconds an example of the real collect code takes, after one warm-up."""
    times = []
    for _ in range(3):
        started = time.monotonic()
        _collect_tasks.partition_arrays(decision, "train", Span(0, rows))
        times.append((time.monotonic() - started) / rows)
    return sorted(times)[1]


def _fixed(sketch_seconds: float, rate: float, rows: int) -> float:
    """Return the part of the sketch that does not grow with the sample, by the cost of its gradients."""
    return max(0.0, sketch_seconds - rows * rate * MOST_PROBES)


def _partition_bytes(train: ExampleSet, row_bytes: int) -> int:
    """Return what the finished rows of two partitions take: one is written while one is computed."""
    return 3 * train.partition_examples * (row_bytes + 40)


def _peak_bytes() -> int:
    """Return this process's peak resident memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
