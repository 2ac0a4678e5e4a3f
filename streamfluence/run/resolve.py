"""Turn a job into the manifest of a run: look everything up once, and pin it by digest."""

import glob
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from streamfluence.codecs._compressors import zarr_compressors
from streamfluence.data import open_reader
from streamfluence.data._files import file_signatures, natural_key
from streamfluence.errors import InputError, StreamfluenceError
from streamfluence.job import Job
from streamfluence.layout import FORMAT_VERSION, MANIFEST, default_partition_examples, queries_path
from streamfluence.options import checked
from streamfluence.registry import member
from streamfluence.run.curvatures import used_curvature
from streamfluence.run.defaults import codec_of, curvature_of, decisive, projection_of, rows_of
from streamfluence.run.feature import refuse_uncentrable, refuse_what_needs_gradients
from streamfluence.run.identity import identity
from streamfluence.run.identity import plain as _plain
from streamfluence.run.opened import OpenRun
from streamfluence.run.readouts import pin_readouts
from streamfluence.run.rehearsal import rehearse
from streamfluence.short_forms import codec_options, readout_options
from streamfluence.store import open_storage
from streamfluence.store.run_documents import read_manifest
from streamfluence.store.storage import Storage
from streamfluence.store.vacate import vacate
from streamfluence.task import Task, digest_of
from streamfluence.task_file import load_task
from streamfluence.user_code import still

_QUERY_KEYS = ("measurement",)


def open_run(job: Job, run_path: str, digest: bool = True, device: str | None = None) -> OpenRun:
    """Create the run of a job, or open it when it exists and agrees.

    A run of another job in which nothing was ever made is no run yet, and gives way.

    Args:
        digest: False pins the data by its cheap signature only, for a run that is thrown away.
        device: Where to try the task on a few examples before a run is made; None leaves that out.

    Raises:
        InputError: If an input is missing, or the run was made from another job or other data.
    """
    storage = open_storage(run_path)
    _check_members(job)
    task = load_task(job.task, job.root)
    for table in job.queries.values():
        task.check_measurement(table.get("measurement", "loss"))
    reader = open_reader(dict(job.train), job.root)
    count = reader.count()
    if count == 0:
        raise InputError(f"the training set {dict(job.train)} holds no examples")
    pin_readouts(readout_options(job.score, job.readouts), job.root, count)
    paths = expand(job)
    refuse_uncentrable(job, len(paths))
    weights = job.checkpoint_weights or [1.0 / len(paths)] * len(paths)
    if len(weights) != len(paths):
        raise InputError(
            f"{len(weights)} checkpoint_weights for {len(paths)} checkpoints ({', '.join(paths)}); "
            "give each its weight, or leave checkpoint_weights out for the mean"
        )
    if device is not None and not storage.exists(MANIFEST):
        rehearse(job, task, paths[0], reader, device)
    files = _task_files(task, job, storage)
    manifest = {
        "format_version": FORMAT_VERSION,
        **decisive(job),
        "task_digest": digest_of(files),
        "task_files": files,
        "checkpoints": [checkpoint_facts(job.root, path) for path in paths],
        "checkpoint_weights": list(weights),
        "train": {
            "table": _plain(job.train),
            "count": count,
            "partition_examples": _partition_examples(job, count),
            "identity": identity(storage, reader, job.train, digest),
            "code": reader.code(),
        },
    }
    vacate(storage, manifest)
    run = OpenRun.create(run_path, manifest)
    for name, table in job.queries.items():
        add_query_set(run, job, name, table)
    return run


def add_query_set(run: OpenRun, job: Job, name: str, table: Mapping[str, Any]) -> None:
    """Pin one query set under the run; the same set again is no change, another is refused."""
    data = {key: value for key, value in table.items() if key not in _QUERY_KEYS}
    reader = open_reader(dict(data), job.root)
    count = reader.count()
    if count == 0:
        raise InputError(f"the query set {name!r} holds no examples")
    document = {
        "table": _plain(data),
        "measurement": table.get("measurement", "loss"),
        "count": count,
        "partition_examples": _partition_examples(job, count),
        "identity": identity(run.storage, reader, data),
        "code": reader.code(),
    }
    path = queries_path(name)
    if not run.has(path):
        run.create_document(path, document)
    elif run.read_document(path) != _plain(document):
        raise InputError(
            f"query set {name!r} of {run.url} was made from other data or another measurement; give "
            f"the new set another name, or use a new run folder"
        )


def _task_files(task: Task, job: Job, storage: Storage) -> dict[str, str]:
    """Return the digests of the task's files, with those that only running it found for this run."""
    stored: Mapping[str, str] = {}
    with suppress(StreamfluenceError, FileNotFoundError):  # whoever opens it says so
        stored = read_manifest(storage)[0]["task_files"]
    if any(stored.get(name) != digest for name, digest in task.files.items()):
        return dict(task.files)
    return {**still(stored, job.root), **task.files}


def expand(job: Job) -> list[str]:
    """Return the job's checkpoint paths in the order given, those of a glob in natural order."""
    paths: list[str] = []
    for pattern in job.checkpoints:
        if (job.root / pattern).exists() or not any(each in pattern for each in "*?["):
            paths.append(pattern)
            continue
        found = sorted(glob.glob(pattern, root_dir=job.root, recursive=True), key=natural_key)
        if not found:
            raise InputError(f"checkpoints: nothing matches {pattern!r} under {job.root}")
        paths += found
    return paths


def checkpoint_facts(root: Path, name: str) -> dict[str, Any]:
    """Return path and sha256 of a checkpoint file, or of every file of a checkpoint folder."""
    path = root / name
    digest = hashlib.sha256()
    for file in _checkpoint_files(path):
        digest.update(os.fsencode(file.relative_to(path.parent)))
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return {"path": name, "sha256": digest.hexdigest()}


def checkpoint_signature(path: Path) -> Any:
    """Return sizes and times of the files of a checkpoint."""
    return file_signatures(_checkpoint_files(path))


def _checkpoint_files(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"checkpoint {path} does not exist; check `checkpoints` in the job")
    return sorted(_files_below(path)) if path.is_dir() else [path]


def _files_below(folder: Path, inside: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yield the files of a folder, through links, which whoever loads it follows too."""
    real = folder.resolve()
    if real in inside:
        raise InputError(f"checkpoint folder {folder} links back to a folder it lies in")
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files_below(entry, inside | {real})
        elif entry.is_file():
            yield entry


def _check_members(job: Job) -> None:
    """Refuse a member or an option that is not there before the run is made, or it would hold the mistake."""
    checked("projections", projection_of(job), job.projection.options)
    checked("codecs", codec_of(job), codec_options(rows_of(job)))
    used = used_curvature(curvature_of(job), job.curvature.options, outputs=True)
    refuse_what_needs_gradients(job, used.member)
    member("scales", job.score.scale)
    zarr_compressors(job.rows.compressor, "uint8")
    for name, options in readout_options(job.score, job.readouts).items():
        checked("readouts", name, options)


def _partition_examples(job: Job, count: int) -> int:
    wanted = job.compute.partition_examples
    if wanted == "auto":
        return default_partition_examples(count, job.compute.batch_size)
    return wanted
