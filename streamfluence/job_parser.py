"""Read a job: its file, what is laid over it, and every value that no run can be made of refused."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamfluence.errors import InputError
from streamfluence.job import Curvature, Job
from streamfluence.job_file import check_values, read_toml
from streamfluence.tables import build


def load_job(path: Path, overrides: Mapping[str, Any] | None = None) -> Job:
    """Read a job file; ``overrides`` maps dotted keys (``rows.bytes``) to values laid over it.

    Raises:
        InputError: If the file is missing or not TOML, a key is unknown or missing, or a value
            has the wrong type or range.
    """
    table = read_toml(path)
    for key, value in (overrides or {}).items():
        _override(table, key, value)
    return parse_job(table, path.parent.resolve())


def parse_job(table: Mapping[str, Any], root: Path) -> Job:
    """Return the job of one parsed table; see ``load_job``."""
    check_values(dict(table))
    job: Job = build(Job, {"root": root, **table}, "job")
    _validate(job)
    return job


def _validate(job: Job) -> None:
    positive = {
        "sketch.examples": job.sketch.examples,
        "compute.batch_size": job.compute.batch_size,
        "compute.threads": job.compute.threads,
    }
    optional = {
        "score.top_k": job.score.top_k,
        "sketch.probes": job.sketch.probes,
        "projection.width": job.projection.width,
        "compute.partition_examples": job.compute.partition_examples,
        "compute.workers": job.compute.workers,
        "rows.width": job.rows.width,
        "rows.bits": job.rows.bits,
    }
    positive |= {key: value for key, value in optional.items() if isinstance(value, int)}
    for key, value in positive.items():
        if value < 1:
            raise InputError(f"{key} = {value}; it must be at least 1")
    if job.sketch.seed < 0:
        raise InputError(f"sketch.seed = {job.sketch.seed}; it must be 0 or more")
    if job.rows.bytes < 0:
        raise InputError(
            f"rows.bytes = {job.rows.bytes}; it must be positive, or 0 to store everything"
        )
    _check_curvature(job.curvature)
    if job.projection.name == "principal" and job.curvature.blocks == "layer":
        raise InputError(
            "curvature.blocks = 'layer' needs directions of one layer each, but those of the projection "
            "'principal' lie over all layers; use blocks = 'joint', or projection.name = 'spectral'"
        )
    if not 0 <= job.rows.max_non_finite <= 1:
        raise InputError(
            f"rows.max_non_finite = {job.rows.max_non_finite}; it is a share of the rows, 0 to 1"
        )
    if not job.checkpoints:
        raise InputError("checkpoints is empty; name at least one")
    if not all(math.isfinite(weight) for weight in job.checkpoint_weights or ()):
        raise InputError(f"checkpoint_weights = {job.checkpoint_weights}; they must be finite")
    if job.checkpoint_weights and not any(job.checkpoint_weights):
        raise InputError(
            "checkpoint_weights are all 0, and so would every score be; leave them out"
        )
    batch, partition = job.compute.batch_size, job.compute.partition_examples
    if isinstance(partition, int) and partition % batch:
        raise InputError(
            f"compute.partition_examples = {partition} is not a multiple of compute.batch_size = {batch}; "
            f"a partition is a whole number of batches, e.g. {-(-partition // batch) * batch}"
        )
    for name in job.queries:
        if not name.replace("-", "").replace("_", "").isalnum() or name == "train":
            raise InputError(
                f"query set {name!r}: use letters, digits, - and _, and not the name 'train'"
            )


def _check_curvature(curvature: Curvature) -> None:
    """Refuse numbers that would make a damping of zero, less, or something other than was meant."""
    damping, momentum = curvature.damping, curvature.momentum
    if isinstance(damping, float) and not 0 < damping < math.inf:
        raise InputError(f"curvature.damping = {damping}; it must be positive and finite")
    decay = curvature.weight_decay
    if decay is not None and not 0 <= decay < math.inf:
        raise InputError(f"curvature.weight_decay = {decay}; it must be 0 or more, and finite")
    rate, steps = curvature.learning_rate, curvature.steps
    if (rate is None) != (steps is None):
        raise InputError(
            "curvature.learning_rate and curvature.steps belong together: both say when training "
            "was stopped; give both or neither"
        )
    if rate is not None and not 0 < rate < math.inf:
        raise InputError(f"curvature.learning_rate = {rate}; it must be positive and finite")
    if steps is not None and steps < 1:
        raise InputError(f"curvature.steps = {steps}; it must be at least 1")
    if curvature.optimizer == "adam" and (steps is None or curvature.batch_size is None):
        raise InputError(
            "curvature.optimizer = 'adam' needs learning_rate, steps and batch_size of training, which "
            "say how far it went along a direction; give all three, or leave the optimizer out"
        )
    if curvature.batch_size is not None and curvature.batch_size < 1:
        raise InputError(f"curvature.batch_size = {curvature.batch_size}; it must be at least 1")
    if not 0 <= momentum < 1:
        raise InputError(f"curvature.momentum = {momentum}; it must be at least 0 and below 1")


def _override(table: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise InputError(f"cannot set {key}: {parent} is not a table")
    table[last] = value
