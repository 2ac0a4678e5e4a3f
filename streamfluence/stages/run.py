"""Do everything of a job that is missing: sketch, collect, score. Safe to repeat at any point.

Where scores are not made of rows nothing is collected.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from streamfluence.budget import Cost, disk_bytes, parse_size, refuse_what_does_not_fit
from streamfluence.execution import Execution, Progress, Silent, mounted, mounted_root
from streamfluence.job import Job
from streamfluence.job_parser import load_job
from streamfluence.layout import decision_stage
from streamfluence.registry import member
from streamfluence.run.decision import load_codec
from streamfluence.run.opened import OpenRun
from streamfluence.run.readouts import needed
from streamfluence.run.record import row_warnings, sketch_warnings
from streamfluence.run.resolve import open_run
from streamfluence.run.rows import StoredRows
from streamfluence.run.sets import NO_QUERIES
from streamfluence.run.source import ROWS_SOURCE
from streamfluence.scoring.asked import Asked
from streamfluence.scoring.score import score_set
from streamfluence.scoring.source import check_source, try_source
from streamfluence.short_forms import chosen_readouts, readout_options
from streamfluence.stages.collect import collect
from streamfluence.stages.score import scored
from streamfluence.stages.sketch import sketch
from streamfluence.stages.status import status


def run(
    job_path: str | Path,
    run_path: str,
    overrides: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run a job to its end and return what was made.

    Raises:
        StreamfluenceError: Of the stage that failed; everything committed before stays.
    """
    progress = progress or Silent()
    job = job_here(job_path, overrides)
    execution = execution_of(job)
    execution.check()
    check_source(job.score)
    opened = open_run(job, run_path, device=execution.resolved_device())
    with mounted(job.root):  # also if another machine, which sees it elsewhere, says so meanwhile
        return _do(job, opened, run_path, execution, progress)


def job_here(job_path: str | Path, overrides: Mapping[str, Any] | None) -> Job:
    """Return a job, its paths relative to the folder given for this command if there is one."""
    job, root = load_job(Path(job_path), overrides), mounted_root()
    return job if root is None else replace(job, root=root)


def _do(
    job: Job, run: OpenRun, run_path: str, execution: Execution, progress: Progress
) -> dict[str, Any]:
    """Do what is missing of an opened run."""
    with_rows = job.score.source == ROWS_SOURCE
    if with_rows:
        _refuse_full_disk(run)
    try_source(run, asked_of(job), execution.resolved_device())
    sketched = sketch(run_path, execution, progress)
    if with_rows:
        _refuse_full_disk(run)
    for facts in sketched["checkpoints"]:
        for announcement in facts["coverage"]["announcements"]:
            progress.message(announcement)
    # Before the long work: a doubt that the sketch alone justifies may change the job.
    doubts = sketch_warnings(run, with_rows, member("scoring.sources", job.score.source).damps)
    _say(progress, doubts)
    collected: dict[str, Any] = {"sets": {}}
    found: list[str] = []
    if with_rows:
        collected = collect(run_path, None, execution, progress)
        found = row_warnings(run, [])
        _say(progress, found)
    scores: list[dict[str, Any]] = []
    if job.queries or _needs_no_queries(job):
        asked = asked_of(job)
        results = [
            score_set(run, name, asked, None, name, execution, progress)
            for name in sorted(job.queries) or [NO_QUERIES]
        ]
        made = scored(run, results)
        scores = made["scores"]
        said = {*doubts, *found}
        late = [doubt for doubt in made["warnings"] if doubt not in said]
        _say(progress, late)
        found += late
    return {
        "run": run_path,
        "sets": collected["sets"],
        "scores": scores,
        "warnings": [*doubts, *found],
    }


def asked_of(job: Job) -> Asked:
    """Return what scores a job asks for."""
    told = job.score
    asked = Asked(
        chosen_readouts(told), told.top_k, told.subsets, job.readouts, told.scale, told.source
    )
    if told.source == ROWS_SOURCE:
        return asked
    asked = replace(asked, solver=told.solver, solver_options=told.solver_options)
    return replace(asked, record=told.record, scan=told.scan, scan_options=told.scan_options)


def _needs_no_queries(job: Job) -> bool:
    """Return whether something is read out, and all of it looks at training rows alone."""
    asked = readout_options(job.score, job.readouts)
    needs = needed(member("readouts", name) for name in asked)
    return bool(asked) and "scores" not in needs


def _refuse_full_disk(run: OpenRun) -> None:
    """Raise BudgetError when the rows still missing exceed the free disk space.

    Before the sketch a row is what was asked for, or as much as nothing; after it, what it is.
    """
    total = 0
    for part in status(run.url)["sets"]:
        size = run.example_set(part["set"]).partition_examples
        rows = min(len(part["missing"]) * size, part["examples"])
        total += disk_bytes(rows, _row_bytes(StoredRows(run, part["set"], part["checkpoint"])), 1)
    refuse_what_does_not_fit(Cost(total, 0, 0, 0, 0.0), run.url, None)


def _row_bytes(rows: StoredRows) -> int:
    run, of_train = rows.run, rows.example_set == "train"
    if run.receipt(decision_stage(rows.checkpoint), 0) is None:
        return run.method.rows.bytes if of_train else 0
    codec, preconditioner = load_codec(run, rows.checkpoint)
    return codec.stored_bytes if of_train else 4 * preconditioner.width


def _say(progress: Progress, doubts: list[str]) -> None:
    for doubt in doubts:
        progress.message(f"warning: {doubt}")


def execution_of(job: Job) -> Execution:
    """Return how a job wants its tasks to be run."""
    compute = job.compute
    return Execution(
        executor=compute.executor,
        workers=compute.workers,
        dask=compute.dask,
        device=compute.device,
        memory=None if compute.memory is None else parse_size(compute.memory),
    )
