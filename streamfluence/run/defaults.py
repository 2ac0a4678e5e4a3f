"""What ``auto`` means in a job, and the part of a job that decides every number of a run.

What only decides how the work is executed (workers, device, memory) stays out of that part,
so that a run may be continued on another machine.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from streamfluence.job import Job, Rows
from streamfluence.registry import member
from streamfluence.short_forms import codec_options

WIDEST_JOINT = 4096  # features: 50 s and 128 MiB for its eigenvectors; beyond, one block a layer


def blocks_of(job: Job) -> str:
    """Return ``layer`` or ``joint``.

    One matrix over all layers predicts retraining better where its damping is right, and worse
    where it is too small; blocks forgive. So it is joint unless only a weight decay is known, which
    is too small for training that was stopped before it settled. LDS at 256 bytes on the digits MLP, the
    digits convolutional net, the diabetes MLP and the digits MLP under momentum and under AdamW: .815 .534
    .865 .740 .816 jointly with the damping of the default rule, .800 .488 .760 .737 .814 by layer; with
    the weight decay alone, for an earlier projection, on the first three .758 .404 .884 jointly and .793
    .437 .782 by layer. A diagonal joins nothing, so its damping is that of layers.
    """
    asked, curvature, projection = job.curvature.blocks, job.curvature, job.projection
    if asked != "auto":
        return asked
    if not of_gradients(job) and projection.name == "auto":
        return "layer"  # of the one block that there is
    if projection.name == "principal":
        return "joint"
    if curvature.name == "diagonal":
        return "layer"
    settled = isinstance(curvature.damping, float) or curvature.steps is not None
    joint = (settled or not curvature.weight_decay) and projection.name != "identity"
    small = projection.width == "auto" or projection.width <= WIDEST_JOINT
    return "joint" if joint and small else "layer"


def of_gradients(job: Job) -> bool:
    """Return whether what is measured of an example is a gradient."""
    return bool(member("features", job.feature.name).gradients)


def curvature_of(job: Job) -> str:
    """Return the curvature: as asked, or Gauss-Newton of gradients and none of anything else."""
    if job.curvature.name != "auto":
        return job.curvature.name
    return "gauss_newton" if of_gradients(job) else "identity"


def codec_of(job: Job) -> str:
    """Return the codec: as asked, or what the feature is stored best by."""
    return (
        job.rows.codec if job.rows.codec != "auto" else member("features", job.feature.name).codec
    )


def projection_of(job: Job) -> str:
    """Return the projection: as asked, or ``principal`` under one curvature over all layers.

    Its directions lie over all layers, so under a curvature by layer it is ``spectral``; and they
    are mixtures in which a curvature is not nearly diagonal, as it is in pairs of eigenvectors. What
    is no gradient is short, and needs none.
    """
    asked, curvature = job.projection.name, curvature_of(job)
    if asked != "auto":
        return asked
    if not of_gradients(job):
        return "identity"
    mixed = blocks_of(job) == "joint" and curvature not in ("identity", "diagonal")
    return "principal" if mixed else "spectral"


def width_of(job: Job) -> int:
    """Return how many features are wanted: as asked, or by the bytes of a row.

    Principal directions: two a byte, 1,024 to 2,048. Others: eight a byte, 1,024 to 4,096.
    """
    if job.projection.width != "auto":
        return job.projection.width
    if projection_of(job) == "principal":
        return min(max(1024, 2 * job.rows.bytes), 2048)
    return min(max(1024, 8 * job.rows.bytes), WIDEST_JOINT)


def decisive(job: Job) -> dict[str, Any]:
    """Return the part of a job that decides numbers, as JSON-able tables."""
    compute = asdict(job.compute)
    return {
        "model": _plain(asdict(job.model)),
        "sketch": asdict(job.sketch),
        "feature": _plain(asdict(job.feature)),
        "projection": {
            **_plain(asdict(job.projection)),
            "name": projection_of(job),
            "width": width_of(job),
        },
        "curvature": {
            **_plain(asdict(job.curvature)),
            "name": curvature_of(job),
            "blocks": blocks_of(job),
        },
        "rows": _rows(job),
        "compute": {key: compute[key] for key in ("batch_size", "precision", "threads")},
    }


def rows_of(job: Job) -> Rows:
    """Return how rows are stored, the codec as resolved."""
    return replace(job.rows, codec=codec_of(job))


def _rows(job: Job) -> dict[str, Any]:
    """Return how rows are stored, with short forms of options written out."""
    rows = rows_of(job)
    table = {**asdict(rows), "options": codec_options(rows)}
    return {key: _plain(value) for key, value in table.items() if key not in ("width", "bits")}


def _plain(value: Any) -> Any:
    """Return tuples as lists, so that a manifest equals itself after a round trip through JSON."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
