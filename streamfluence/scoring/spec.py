"""What scores are of and how they are made: pinned under their name, read by every work unit."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamfluence.errors import InputError
from streamfluence.job import Score
from streamfluence.layout import collect_stage, queries_path, score_path
from streamfluence.readouts.base import Readout
from streamfluence.registry import member
from streamfluence.run.feature import feature_of, meaning_of
from streamfluence.run.finished import (
    spec_bases,
)
from streamfluence.run.opened import OpenRun
from streamfluence.run.rows import row_receipts
from streamfluence.run.sets import named_query_set, refuse_missing
from streamfluence.store.documents import differences

_STORED = ("self_influence", "grad_norm", "loss")  # what a scale may look at
DENSE_BYTES = 64 << 20  # scores that one task holds before it writes them


TASK_ROWS = 262_144  # rows a task: large enough to be worth a task, small enough to lose


def make_spec(
    run: OpenRun, example_set: str, options: Score, damping: float | None, allow_incomplete: bool
) -> dict[str, Any]:
    """Return everything that decides a result, after checking that its rows are there."""
    named_query_set(run, example_set)
    _check_damping(run, damping)
    scale = member("scales", options.scale)()
    _check_scale(run, options.scale, damping)
    for checkpoint in run.checkpoints:
        row_receipts(run, example_set, checkpoint)
    missing = sorted(
        {
            partition
            for checkpoint in run.checkpoints
            for partition in run.missing(collect_stage("train", checkpoint), run.train.partitions)
        }
    )
    if missing and not allow_incomplete:
        refuse_missing(run, "train", missing)
    facts = run.read_document(queries_path(example_set))
    present = sorted(set(range(run.train.partitions)) - set(missing))
    size = max(1, _task_rows(options, facts["count"]) // run.train.partition_examples)
    root = run.place.root
    meaning, unit = meaning_of(run.method, facts["measurement"])
    return {
        "queries": example_set,
        "rests_on": spec_bases(run, example_set),
        "measurement": facts["measurement"],
        "damping": damping,
        "scale": options.scale,
        "readouts": {
            readout: readout_options(readout, options, run.train.count, root)
            for readout in options.readouts
        },
        "tasks": [present[i : i + size] for i in range(0, len(present), size)],
        "missing_partitions": missing,
        "meaning": scale.meaning(meaning),
        "unit": scale.unit(unit),
    }


def _check_damping(run: OpenRun, damping: float | None) -> None:
    """Refuse another damping that is no number to damp with, or that nothing would be damped by."""
    if damping is None:
        return
    if not 0 < damping < math.inf:
        raise InputError(f"damping = {damping}; it must be positive and finite")
    if run.method.curvature.name == "identity":
        raise InputError(
            f"{run.url} was made with curvature.name = 'identity', which has no damping to change; "
            "leave --damping out, or make a run with a curvature"
        )


def _check_scale(run: OpenRun, name: str, damping: float | None) -> None:
    """Refuse a scale by norms that the stored ones are not."""
    if name == "none":
        return
    unknown = sorted(set(member("scales", name)().columns) - set(_STORED))
    if unknown:
        raise InputError(
            f"the scale {name!r} looks at {', '.join(unknown)}, which is not stored of an example; there are "
            f"{', '.join(_STORED)}"
        )
    if damping is not None:
        raise InputError(
            f"the scale {name!r} is made of what was stored with rows, under the damping that they were "
            "whitened with, so another damping has none; leave --damping or --scale out, or make a run with "
            "that damping"
        )
    if feature_of(run.method).centred:
        raise InputError(
            f"the scale {name!r} is made of stored norms, which are not of centred rows; leave --scale "
            "out, or make a run whose feature is not centred"
        )


def _task_rows(options: Score, queries: int) -> int:
    """Return how many rows one task scores: fewer when every score of them is kept."""
    if "dense" not in options.readouts:
        return TASK_ROWS
    return min(TASK_ROWS, DENSE_BYTES // (4 * queries))


def readout_options(readout: str, options: Score, examples: int, root: Path) -> dict[str, Any]:
    """Return the options of one readout among those of a score, in a job of the folder ``root``.

    Args:
        examples: Of the training set; no list is longer.
    """
    if readout == "subset_sum":
        if options.subsets is None:
            raise InputError("the readout subset_sum needs score.subsets: a mask or lists of rows")
        return {"subsets": options.subsets, "sha256": file_sha256(root / options.subsets)}
    return {"k": min(options.top_k, examples)} if readout in ("top_k", "self_influence") else {}


def pin(run: OpenRun, label: str, spec: Mapping[str, Any]) -> None:
    """Fix what a result of that name is, once everything in it was seen to be possible."""
    build_readouts(spec, run.place.root)
    if not run.has(score_path(label)):
        run.create_document(score_path(label), dict(spec))
        return
    there = run.read_document(score_path(label))
    if there != spec:
        raise InputError(
            f"scores {label!r} of {run.url} were made with other settings: "
            f"{differences(there, spec, limit=3)}; keep both with `streamfluence score RUN --name NEW`"
        )


def build_readouts(spec: Mapping[str, Any], root: Path) -> dict[str, Readout]:
    """Return the readouts of a score, by name."""
    readouts = {}
    for name, options in spec["readouts"].items():
        if "subsets" in options:
            path = root / options["subsets"]
            if options["sha256"] != file_sha256(path):
                raise InputError(
                    f"{path} changed since these scores were asked for; score again under another --name"
                )
            options = {"subsets": path}
        readouts[name] = member("readouts", name)(**options)
    return readouts


def file_sha256(path: Path) -> str | None:
    """Return the digest of a file; None where it cannot be read, which its reader explains."""
    try:
        if not path.is_file():  # a device has no end
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return None
