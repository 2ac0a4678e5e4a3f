"""Scores of a case by the real pipeline: job file, run directory, public API.

Nothing is shared with the references; a variant is a few lines of a job.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases.base import Case, Split
from fidelity_training import unflatten
from torch import Tensor

import streamfluence
from streamfluence.job_parser import load_job
from streamfluence.run.opened import OpenRun
from streamfluence.run.resolve import open_run
from streamfluence.sketching.reuse import reuse_sketch
from streamfluence.stages.run import run as run_job
from streamfluence.stages.sketch import describe

JOB = """
task = "task.py"
checkpoints = [{checkpoints}]

[train]
reader = "arrays"
path = "train.npz"

{queries}

[curvature]
{curvature}

[compute]
executor = "serial"
device = "cpu"
"""
QUERIES = """
[queries.{name}]
reader = "arrays"
path = "{name}.npz"
"""
NAMED, LATER = "named", "later"


def write_case(case: Case, split: Split, weights: Tensor, folder: Path) -> None:
    """Write the task, the data, one checkpoint a net and two jobs into ``folder``.

    ``job.toml`` names half of the queries; ``later.toml`` is the same job with the others added,
    run on the same run once its rows are stored. ``queries.npz`` holds them all, for peers.

    Args:
        weights: Of the judged nets, ``(model, weight)``; net k becomes ``net<k>.pt``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(case.task_path, folder / "task.py")
    for name, fields in (("train", split.train), ("queries", split.queries), *_halves(split)):
        np.savez(folder / f"{name}.npz", **fields)  # type: ignore[arg-type]
    for number, state in enumerate(unflatten(case, weights)):
        torch.save({name: w.clone() for name, w in state.items()}, folder / f"net{number}.pt")
    _write_jobs(case, folder, range(len(weights)))


def run_scores(run_path: Path, damping: float | None = None) -> np.ndarray:
    """Return scores ``(example, query)`` of a run of both jobs, queries in the order of the case."""
    run = streamfluence.open(str(run_path))
    return np.concatenate([run.scores(name, damping).compute() for name in (NAMED, LATER)], axis=1)


class Workspace:
    """A folder with a case, in which variants are run, one after the other.

    What the sketch of the variant before and a variant's own have in common is not made twice, so
    variants that differ in bytes or damping alone should follow each other.

    Args:
        folder: Empty, or made before by the same call.
        weights: Of the judged nets, ``(model, weight)``.
    """

    def __init__(self, folder: Path, case: Case, split: Split, weights: Tensor) -> None:
        self.folder, self.case = folder, case
        write_case(case, split, weights, folder)

    def scores(self, model: int, options: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """Return scores ``(example, query)`` of one net and the facts of its sketch.

        Args:
            options: Laid over the job, dotted keys to values (``{"rows.bytes": 128}``); the key
                ``score.damping`` is the damping at scoring time.
        """
        options = dict(options)
        damping = options.pop("score.damping", None)
        (job, later), run_path = _write_jobs(self.case, self.folder, [model]), self.folder / "run"
        before = self.folder / "run-before"
        shutil.rmtree(before, ignore_errors=True)
        if run_path.exists():
            run_path.rename(before)
            made = open_run(load_job(job, options), str(run_path))
            reuse_sketch(OpenRun.open(str(before)), made)
        run_job(job, str(run_path), options)
        run_job(later, str(run_path), options)
        scores = run_scores(run_path, damping)
        facts = describe(OpenRun.open(str(run_path)))["checkpoints"][0]
        assert np.isfinite(scores).all(), f"scores of {options} are not finite"
        return scores, facts


def _write_jobs(case: Case, folder: Path, models: Iterable[int]) -> tuple[Path, Path]:
    """Write the job and the one that asks later; return their paths."""
    stated = {key.split(".")[1]: value for key, value in case.job().items()}
    fields = {
        "checkpoints": ", ".join(f'"net{model}.pt"' for model in models),
        "curvature": "\n".join(f"{key} = {json.dumps(value)}" for key, value in stated.items()),
    }
    paths = folder / "job.toml", folder / "later.toml"
    for path, names in zip(paths, ([NAMED], [NAMED, LATER]), strict=True):
        queries = "".join(QUERIES.format(name=name) for name in names)
        path.write_text(JOB.format(queries=queries, **fields))
    return paths


def _halves(split: Split) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    for name, part in ((NAMED, slice(split.n_named)), (LATER, slice(split.n_named, None))):
        yield name, {field: values[part] for field, values in split.queries.items()}
