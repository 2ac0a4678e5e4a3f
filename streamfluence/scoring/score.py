"""Make scores: do the work units that are missing, and merge what they read out."""

from collections.abc import Mapping
from typing import Any

from streamfluence.execution import Execution, Progress, Silent, run_all
from streamfluence.job import Score
from streamfluence.run.finished import (
    Bases,
    Finished,
    finished,
    read_spec,
    refuse_changed,
    stale,
)
from streamfluence.run.sets import score_path
from streamfluence.scoring import units as work
from streamfluence.scoring.spec import make_spec, pin
from streamfluence.store import RunStore


def score_set(
    run_path: str,
    example_set: str,
    options: Score | None,
    damping: float | None,
    name: str | None,
    execution: Execution,
    progress: Progress,
    allow_incomplete: bool = False,
) -> Finished:
    """Return the finished scores of one query set; what is already there is not done again.

    Args:
        options: What to read out; None: what was read out before, if there are scores of that name.

    Raises:
        IncompleteError: If rows are missing.
        InputError: If the name was given to other settings before.
    """
    store = RunStore.open(run_path)
    label = name or (example_set if damping is None else f"{example_set}-damping-{damping:g}")
    spec = make_spec(store, example_set, options or Score(), damping, allow_incomplete)
    if options is None and store.has(score_path(label)):
        spec["readouts"] = store.read_document(score_path(label))["readouts"]
    pin(store, label, spec)
    _execute(store, run_path, label, spec, execution, progress)
    return _merge(store, run_path, label)


def rescore(
    run_path: str,
    labels: list[str],
    execution: Execution | None = None,
    progress: Progress | None = None,
) -> None:
    """Do what is missing of scores that were asked for before, and what no longer rests on what is there."""
    store = RunStore.open(run_path)
    for label in labels:
        spec = read_spec(store, label)
        _discard_stale(store, label, spec)
        _execute(store, run_path, label, spec, execution or Execution(), progress or Silent())
        _discard_stale(store, label, spec)  # parts made on another machine may have other last bits
        _merge(store, run_path, label)


def _discard_stale(store: RunStore, label: str, spec: Mapping[str, Any]) -> None:
    for stage, part in stale(store, label, spec):
        store.discard(stage, part)


def _execute(
    store: RunStore,
    run_path: str,
    label: str,
    spec: Mapping[str, Any],
    execution: Execution,
    progress: Progress,
) -> None:
    missing = store.missing(f"score/{label}", len(spec["tasks"]))
    there = sorted(set(range(len(spec["tasks"]))) - set(missing))
    bases = Bases(store, spec, there)
    for task in there:
        receipt = store.receipt(f"score/{label}", task)
        if receipt is not None:
            refuse_changed(store, label, receipt, bases)
    if missing:
        with execution.open(len(missing), store.manifest["compute"]["threads"]) as executor:
            progress.start(f"score {label}", len(missing), "tasks")
            tasks = [(run_path, execution.resolved_device(), label, task) for task in missing]
            run_all(executor, work.score, tasks, lambda *_: progress.advance(1))
            progress.finish()


def _merge(store: RunStore, run_path: str, label: str) -> Finished:
    if store.receipt(f"scores/{label}", 0) is None:
        work.merge(run_path, label)
    return finished(store, label)
