"""The method of a run, as a typed, frozen value: it decides every number, apart from the data.

Types and ranges were checked when the manifest was read (``store.shapes``), so nothing is checked
again here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from streamfluence.job import Curvature, Feature, Model, Projection, Rows, Sketch

T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was when the run was made.

    Attributes:
        name: Of its file or folder, without where that lies.
        sha256: Of its files.
    """

    name: str
    sha256: str


@dataclass(frozen=True)
class PinnedModel(Model):
    """Which parameters take part.

    Attributes:
        shuffle: Seed by which the weights are put in random order, in pilot runs of a sanity check;
            a job cannot ask for it.
    """

    shuffle: int | None = None


@dataclass(frozen=True)
class PinnedProjection(Projection):
    """Which linear map makes features of gradients; its name and width are no longer ``auto``."""

    width: int = 0


@dataclass(frozen=True)
class Batches:
    """The part of a job's ``compute`` that decides bits."""

    batch_size: int = 64
    precision: str = "float32"
    threads: int = 1


@dataclass(frozen=True)
class Method:
    """What decides every number of a run, apart from the data.

    Attributes:
        task_digest: Of the task's code; ``task_files`` has the digest of each file.
        weights: Of the checkpoints in a score.
        projection, curvature, rows: As resolved: no name, width, blocks or codec is ``auto``.
    """

    task_digest: str = ""
    task_files: Mapping[str, str] = field(default_factory=dict)
    checkpoints: tuple[Checkpoint, ...] = ()
    weights: tuple[float, ...] = ()
    model: PinnedModel = field(default_factory=PinnedModel)
    sketch: Sketch = field(default_factory=Sketch)
    feature: Feature = field(default_factory=Feature)
    projection: PinnedProjection = field(default_factory=PinnedProjection)
    curvature: Curvature = field(default_factory=lambda: Curvature("gauss_newton"))
    rows: Rows = field(default_factory=lambda: Rows(codec="bands"))
    batches: Batches = field(default_factory=Batches)

    @property
    def joint(self) -> bool:
        """Whether the curvature is one matrix over all layers."""
        return self.curvature.blocks == "joint"

    @property
    def checkpoint_names(self) -> list[str]:
        """What checkpoints are called in a sentence; with their number where names are the same."""
        names = [checkpoint.name for checkpoint in self.checkpoints]
        if len(set(names)) == len(names):
            return names
        return [f"{name} (checkpoint {number})" for number, name in enumerate(names)]


def method_of(manifest: Mapping[str, Any]) -> Method:
    """Return the method that a manifest pins."""
    model = dict(manifest["model"])
    model["exclude"] = tuple(model["exclude"])
    return Method(
        manifest["task_digest"],
        manifest["task_files"],
        tuple(_typed(Checkpoint, each) for each in manifest["checkpoints"]),
        tuple(manifest["checkpoint_weights"]),
        _typed(PinnedModel, model),
        _typed(Sketch, manifest["sketch"]),
        _typed(Feature, manifest["feature"]),
        _typed(PinnedProjection, manifest["projection"]),
        _typed(Curvature, manifest["curvature"]),
        _typed(Rows, manifest["rows"]),
        _typed(Batches, manifest["compute"]),
    )


def _typed(kind: type[T], table: Mapping[str, Any]) -> T:
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    return kind(**{key: value for key, value in table.items() if key in known})
