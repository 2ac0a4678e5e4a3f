"""What a job or a run measures of an example, without a model: what it needs, and what scores mean."""

from collections.abc import Mapping
from typing import Any

from streamfluence.curvature.base import Curvature as BaseCurvature
from streamfluence.errors import InputError
from streamfluence.features.base import Feature
from streamfluence.job import Curvature, Job
from streamfluence.options import make
from streamfluence.registry import member
from streamfluence.run.manifest import Method

_OF_TRAINING = ("weight_decay", "learning_rate", "steps", "momentum", "optimizer", "batch_size")


def feature_of(method: Method) -> Feature:
    """Return what a run measures of an example; not ready to measure."""
    return _feature(method.feature.name, method.feature.options)


def checkpoint_factors(method: Method, examples: int) -> list[float]:
    """Return by what the product of each checkpoint is multiplied in a score.

    Args:
        examples: Of the training set; a predicted effect of removing one of them holds the 1/n.
    """
    shared = examples if feature_of(method).predicts else 1
    return [weight / shared for weight in method.weights]


def meaning_of(method: Method, measurement: str) -> tuple[str, str]:
    """Return what a score is and its unit, before any scale.

    Args:
        measurement: Of the queries.
    """
    feature, curvature = feature_of(method), method.curvature.name
    meaning, unit = feature.meaning(measurement), feature.unit(measurement)
    if feature.predicts or curvature == "identity":
        return meaning, unit
    return f"{meaning}; both are whitened by the curvature {curvature!r}", f"none: {unit}, whitened"


def checked_feature(job: Job) -> Feature:
    """Return what a job measures of an example.

    Raises:
        InputError: If there is no such member, or it has no such options.
    """
    return _feature(job.feature.name, job.feature.options)


def refuse_what_needs_gradients(job: Job, curvature: BaseCurvature) -> None:
    """Refuse what a job asks for of a feature without gradients, which has no place for it.

    Args:
        curvature: The one that is used.
    """
    feature = checked_feature(job)
    name = job.feature.name
    if not feature.gradients:
        if curvature.source == "probes":
            raise InputError(
                f"curvature.name = {job.curvature.name!r} is made of derivatives, but the feature "
                f"{name!r} has none; use 'identity' (the default for it), or 'fisher': the second moment "
                "of its own rows"
            )
        told = [
            key for key in _OF_TRAINING if getattr(job.curvature, key) != getattr(Curvature, key)
        ]
        if told:
            raise InputError(
                f"curvature.{told[0]} says how far training went along a gradient, but the feature {name!r} "
                "is none; leave it out, and give curvature.damping where there is a curvature"
            )
        if job.model.exclude:
            raise InputError(
                f"model.exclude leaves out gradients of parameters, but the feature {name!r} has none; "
                "leave it out"
            )
    if feature.centred:
        _refuse_centred(job, curvature)


def refuse_uncentrable(job: Job, checkpoints: int) -> None:
    """Refuse to take a mean over checkpoints off where there is only one."""
    if checkpoints == 1 and checked_feature(job).centred:
        raise InputError(
            f"a centred {job.feature.name!r} takes off a mean over checkpoints, but there is only one "
            "checkpoint, so every score would be 0; name more, or leave centred out"
        )


def _refuse_centred(job: Job, curvature: BaseCurvature) -> None:
    if type(curvature) is not member("curvature", "identity"):
        raise InputError(
            f"a centred {job.feature.name!r} needs the same measure at every checkpoint, so curvature.name = "
            f"'identity'; {job.curvature.name!r} whitens each by its own"
        )
    weights = job.checkpoint_weights
    if weights is not None and abs(sum(weights)) <= 1e-12 * sum(map(abs, weights)):
        raise InputError(
            f"a centred {job.feature.name!r} takes off a mean over checkpoints, but checkpoint_weights = "
            f"{list(weights)} add up to 0; give others"
        )


def _feature(name: str, options: Mapping[str, Any]) -> Feature:
    feature: Feature = make("features", name, options)
    return feature
