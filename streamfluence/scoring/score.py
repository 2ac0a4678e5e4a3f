"""Make scores: do the work units that are missing, and merge what they read out."""

from collections.abc import Mapping
from typing import Any

from streamfluence.execution import Execution, Progress, Silent, run_all
from streamfluence.layout import prepared_stage, result_stage, score_path, score_stage
from streamfluence.run.finished import (
    Bases,
    Finished,
    finished,
    read_spec,
    refuse_changed,
    stale,
)
from streamfluence.run.opened import OpenRun
from streamfluence.run.prepared import PREPARED, prepared_changed, refuse_changed_preparation
from streamfluence.run.source import ROWS_SOURCE
from streamfluence.scoring import units as work
from streamfluence.scoring.asked import Asked
from streamfluence.scoring.prepare import prepare
from streamfluence.scoring.source import pinned_source
from streamfluence.scoring.spec import make_spec, pin, pinned_readouts


def score_set(
    run: OpenRun,
    example_set: str,
    asked: Asked,
    damping: float | None,
    name: str | None,
    execution: Execution,
    progress: Progress,
    allow_incomplete: bool = False,
) -> Finished:
    """Return the finished scores of one query set; what is already there is not done again.

    Args:
        asked: What to read out; where it asks for no readouts, what was read out before, if there are
            scores of that name. A scale that is given is part of the name that is made.

    Raises:
        IncompleteError: If rows are missing.
        InputError: If the name was given to other settings before.
    """
    tables, label = asked.tables(), name or _label(example_set, damping, asked)
    before: Mapping[str, Any] = {}
    if tables is None and run.has(score_path(label)):
        before = run.read_document(score_path(label))
        pinned = {key: before[key] for key in ("readouts", PREPARED) if key in before}
    else:
        pinned = pinned_readouts(run, asked.defaults() if tables is None else tables)
    chosen = asked.scale or before.get("scale", "none")
    pinned |= pinned_source(run, asked, before)
    spec = make_spec(run, example_set, pinned, damping, chosen, allow_incomplete)
    pin(run, label, spec)
    refuse_changed_preparation(run, label, spec)
    prepare(run, label, spec, execution, progress)
    _execute(run, label, spec, execution, progress)
    return _merge(run, label)


def _label(example_set: str, damping: float | None, asked: Asked) -> str:
    """Return the name of scores that are given none."""
    by_damping = "" if damping is None else f"-damping-{damping:g}"
    by_scale = "" if asked.scale in (None, "none") else f"-{asked.scale}"
    by_source = "" if asked.source in (None, ROWS_SOURCE) else f"-{asked.source}"
    return example_set + by_damping + by_scale + by_source


def rescore(
    run: OpenRun,
    label: str,
    execution: Execution | None = None,
    progress: Progress | None = None,
) -> None:
    """Do what is missing of scores that were asked for before, and what no longer rests on what is there."""
    spec = read_spec(run, label)
    if prepared_changed(run, label, spec):
        run.discard(prepared_stage(label), 0)
    execution, progress = execution or Execution(), progress or Silent()
    prepare(run, label, spec, execution, progress)
    _discard_stale(run, label, spec)
    _execute(run, label, spec, execution, progress)
    _discard_stale(run, label, spec)  # parts made on another machine may have other last bits
    _merge(run, label)


def _discard_stale(run: OpenRun, label: str, spec: Mapping[str, Any]) -> None:
    for stage, part in stale(run, label, spec):
        run.discard(stage, part)


def _execute(
    run: OpenRun,
    label: str,
    spec: Mapping[str, Any],
    execution: Execution,
    progress: Progress,
) -> None:
    missing = run.missing(score_stage(label), len(spec["tasks"]))
    there = sorted(set(range(len(spec["tasks"]))) - set(missing))
    bases = Bases(run, label, spec, there)
    for task in there:
        receipt = run.receipt(score_stage(label), task)
        if receipt is not None:
            refuse_changed(run, label, receipt, bases)
    if missing:
        with execution.open(len(missing), run.method.batches.threads) as executor:
            progress.start(f"score {label}", len(missing), "tasks")
            tasks = [(run.url, execution.resolved_device(), label, task) for task in missing]
            run_all(executor, work.score, tasks, lambda *_: progress.advance(1))
            progress.finish()


def _merge(run: OpenRun, label: str) -> Finished:
    if run.receipt(result_stage(label), 0) is None:
        work.merge(run, label)
    return finished(run, label)
