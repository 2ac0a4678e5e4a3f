"""What the documents of a run say, as typed, frozen values: its method, its place, its example sets.

The method decides every number; the place says where things lie. Types and ranges of the
documents were checked when they were read (``store.shapes``), so nothing is checked again here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from streamfluence.job import Curvature, Feature, Model, Projection, Rows, Sketch
from streamfluence.layout import TRAINING_LOSS, Span, partitions

T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was when the run was made.

    Attributes:
        path: Relative to the run's root.
        sha256: Of its files.
    """

    path: str
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


@dataclass(frozen=True)
class Place:
    """Where things of a run lie; decides no number.

    Attributes:
        root: Folder against which relative paths resolve.
        task: File, or ``package.module:name``.
    """

    root: Path
    task: str


@dataclass(frozen=True)
class ExampleSet:
    """The training set or a query set, as pinned.

    Attributes:
        name: ``train``, or that of the query set.
        table: Of its reader.
        measurement: What is measured of its examples.
        identity: Digests of its data.
        code: Digests of code that its reader names.
        content: All that pins it, as JSON.
    """

    name: str
    table: Mapping[str, Any]
    count: int
    partition_examples: int
    measurement: str
    identity: Any
    code: Any
    content: Mapping[str, Any]

    @cached_property
    def spans(self) -> list[Span]:
        """The examples of every partition, in order."""
        return partitions(self.count, self.partition_examples)

    @property
    def partitions(self) -> int:
        """Into how many partitions the set is cut."""
        return -(-self.count // self.partition_examples)


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


def place_of(manifest: Mapping[str, Any]) -> Place:
    """Return where a manifest says that things lie."""
    return Place(Path(manifest["root"]), manifest["task"])


def example_set_of(name: str, content: Mapping[str, Any]) -> ExampleSet:
    """Return an example set of what pins it."""
    if name == "train":
        content = {**content, "measurement": TRAINING_LOSS}
    keys = [f.name for f in fields(ExampleSet) if f.name not in ("name", "content")]
    return ExampleSet(name, **{key: content[key] for key in keys}, content=content)


def _typed(kind: type[T], table: Mapping[str, Any]) -> T:
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    return kind(**{key: value for key, value in table.items() if key in known})
