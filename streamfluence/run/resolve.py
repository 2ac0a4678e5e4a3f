"""Turn a job into a run's method, ledgers and place: look everything up once, and pin it by digest."""

import glob
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from streamfluence.codecs._compressors import zarr_compressors
from streamfluence.data import open_reader, places_of
from streamfluence.data._files import natural_key
from streamfluence.data.base import Reader
from streamfluence.errors import DamageError, InputError, StreamfluenceError
from streamfluence.execution import mounted_root
from streamfluence.job import Job
from streamfluence.layout import MANIFEST, TRAINING_LOSS, default_partition_examples
from streamfluence.options import checked
from streamfluence.registry import member
from streamfluence.run.checkpoints import checkpoint_facts
from streamfluence.run.curvatures import used_curvature
from streamfluence.run.defaults import codec_of, curvature_of, decisive, projection_of, rows_of
from streamfluence.run.feature import refuse_uncentrable, refuse_what_needs_gradients
from streamfluence.run.identity import identity
from streamfluence.run.identity import plain as _plain
from streamfluence.run.opened import OpenRun
from streamfluence.run.place import Place
from streamfluence.run.readouts import pin_readouts
from streamfluence.run.rehearsal import rehearse
from streamfluence.short_forms import codec_options, readout_options
from streamfluence.store import open_storage
from streamfluence.store.run_documents import read_manifest
from streamfluence.store.storage import Storage
from streamfluence.store.vacate import vacate
from streamfluence.task import Task, digest_of
from streamfluence.task_file import code_folder, load_task
from streamfluence.user_code import still


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
    count = _count(reader, job.train)
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
    method = {
        **decisive(job),
        "task_digest": digest_of(files),
        "task_files": files,
        "checkpoints": [checkpoint_facts(job.root / path) for path in paths],
        "checkpoint_weights": list(weights),
    }
    train = _generation(job, storage, reader, job.train, digest)
    vacate(storage, method, train)
    run = OpenRun.create(run_path, method)
    run.begin("train", train)
    for name, table in job.queries.items():
        run.begin(name, _generation(job, storage, open_reader(dict(table), job.root), table))
    _move(run, job, paths)
    return run


def _generation(
    job: Job, storage: Storage, reader: Reader, table: Mapping[str, Any], digest: bool = True
) -> dict[str, Any]:
    """Return what pins the data of a table of a job, wherever it lies."""
    count = _count(reader, table)
    data = {key: value for key, value in table.items() if key != "measurement"}
    asked = table.get("measurement", "loss")
    places = places_of(table)
    return {
        "measurement": TRAINING_LOSS if table is job.train else asked,
        "table": _plain({key: value for key, value in data.items() if key not in places}),
        "count": count,
        "partition_examples": _partition_examples(job, count),
        "identity": identity(storage, reader, data, digest),
        "code": reader.code(),
    }


def _count(reader: Reader, table: Mapping[str, Any]) -> int:
    """Return the number of examples, which are some."""
    count = reader.count()
    if count == 0:
        raise InputError(f"the data set {dict(table)} holds no examples")
    return count


def _move(run: OpenRun, job: Job, paths: list[str]) -> None:
    """Have the run lie where the job says, where the same was found as it was made of.

    With a root given for one command nothing is said for the next ones, but where nothing was said yet.
    """
    known = None
    with suppress(InputError, DamageError):  # then it is said now
        known = run.place
    if known is not None and mounted_root() is not None:
        return
    data = dict(known.data) if known else {}
    for name, table in {"train": job.train, **job.queries}.items():
        found = {key: _plain(table[key]) for key in places_of(table) if key in table}
        data[name] = [found, *data.get(name, [])[1:]]
    place = Place(Path(job.root), job.task, tuple(paths), data)
    if place != known:
        run.move_to(place)


def _task_files(task: Task, job: Job, storage: Storage) -> dict[str, str]:
    """Return the digests of the task's files, with those that only running it found for this run."""
    stored: Mapping[str, str] = {}
    with suppress(StreamfluenceError, FileNotFoundError):  # whoever opens it says so
        stored = read_manifest(storage)[0]["task_files"]
    if any(stored.get(name) != digest for name, digest in task.files.items()):
        return dict(task.files)
    return {**still(stored, code_folder(job.task, job.root)), **task.files}


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
