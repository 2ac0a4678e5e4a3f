"""The job a user writes: TOML, read into dataclasses. Unknown keys are refused with the nearest known one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Auto = Literal["auto"]


@dataclass(frozen=True)
class Model:
    """Which parameters take part, and how their gradients are kept apart by example.

    Attributes:
        exclude: Patterns of parameters to leave out, such as ``"head.*"``; all other trainable ones
            take part.
        one_by_one: Run all of forward for one example at a time: exact for whatever plain autograd
            can do, and the slowest way.
    """

    exclude: tuple[str, ...] = ()
    one_by_one: bool = False


@dataclass(frozen=True)
class Sketch:
    """How the curvature is sketched from a sample.

    Attributes:
        examples: Sample size, drawn over the whole training set.
        probes: Output-space probes an example; ``exact`` for all columns of the output Hessian's root;
            ``auto`` is exact up to 32 outputs, else 20 probes of the sample a direction, at most 16
            an example.
        seed: Decides the sample, the probes, the random projections and rotations.
    """

    examples: int = 4096
    probes: int | Literal["auto", "exact"] = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Feature:
    """What is measured of an example.

    Attributes:
        name: Member of the family ``features``.
        options: Of the member, such as ``{ module = "layer3" }``.
    """

    name: str = "gradient"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Projection:
    """Which linear map makes the numbers of a row of what is measured.

    Attributes:
        name: Member of the family ``projections``, or ``auto``: of gradients ``principal`` under one
            dense curvature over all layers, else ``spectral``; of a feature without gradients ``identity``.
        width: Features over all layers, or ``auto``: of ``principal`` two for each byte of a row,
            1,024 to 2,048; of others eight, 1,024 to 4,096.
        options: Of the member, such as ``{ entries = 4194304 }``.
    """

    name: str = "auto"
    width: int | Auto = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Curvature:
    """Which matrix stands for the Hessian.

    Attributes:
        name: Member of the family ``curvature``, or ``auto``: of gradients ``gauss_newton``, of a feature
            without gradients ``identity``. Of a task that gives a bare loss ``gauss_newton`` is
            ``fisher``, and ``diagonal`` that of loss gradients.
        options: Of the member, such as ``{ source = "loss" }``.
        blocks: ``layer`` for one block a layer, ``joint`` for one over everything, ``auto`` for what
            is measured to be better: ``joint``, unless a weight decay is all that is known of the
            damping, the projection is ``identity`` or the width above 4,096. Of ``diagonal`` both are
            the same matrix, with another damping where that is ``auto``; there ``auto`` is ``layer``.
        damping: In the unit of the eigenvalues, or ``auto``: the weight decay when it is given, plus
            what stopping early leaves when learning_rate and steps are; else each block's mean.
        weight_decay: The L2 coefficient the model was trained with; not that of AdamW, which is no
            term of the loss.
        learning_rate: Of training; the mean where it changed. Needs steps.
        steps: Of training, how many were taken. Needs learning_rate.
        momentum: Of training by SGD.
        optimizer: ``sgd``, with ``momentum``, or ``adam`` (AdamW too), with the training's
            ``batch_size``: its steps are divided by the size of a batch's gradient, weight by weight,
            and a damping, implied or given, is a mean over weights of what is larger where steps
            were smaller. Needs learning_rate and steps.
        batch_size: Examples of one step of training; Adam's damping depends on it.
    """

    name: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    blocks: Literal["auto", "layer", "joint"] = "auto"
    damping: float | Auto = "auto"
    weight_decay: float | None = None
    learning_rate: float | None = None
    steps: int | None = None
    momentum: float = 0.0
    optimizer: Literal["sgd", "adam"] = "sgd"
    batch_size: int | None = None

    @property
    def by_weight(self) -> bool:
        """Whether the damping differs from weight to weight: training by Adam that stopped early."""
        known = self.optimizer == "adam" and self.learning_rate and self.steps
        return bool(known) and self.name != "identity"

    @property
    def spread(self) -> str:
        """What a damping rule in words adds where the damping is a mean."""
        return ", a mean over weights" if self.by_weight else ""


@dataclass(frozen=True)
class Rows:
    """How one training example's row is stored.

    Attributes:
        bytes: Of one row, scales included; 0 stores every coordinate (float codecs).
        codec: Member of the family ``codecs``, or ``auto``: ``bands``, but ``float32`` where a row is one
            number.
        options: Of the member, such as ``{ max_bits = 4 }``.
        width, bits: Short for these options of ``bands``: a fixed number of directions and of bits.
        compressor: Lossless compressor behind the rows; ``auto`` is none for packed codes.
        max_non_finite: Share of rows that may be NaN or infinite before the run fails.
    """

    bytes: int = 256
    codec: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    width: int | None = None
    bits: int | None = None
    compressor: str = "auto"
    max_non_finite: float = 0.001


@dataclass(frozen=True)
class Score:
    """What is read out of the scores.

    Attributes:
        readouts: Members of the family ``readouts``; those that have a table ``[readouts.NAME]`` are
            read out as well. ``auto`` is ``top_k``, and of stored rows ``self_influence``.
        top_k: Short for the option ``k`` of ``top_k`` and ``self_influence``.
        subsets: Short for the option ``subsets`` of ``subset_sum``: a boolean mask (subset, example) as
            .npy, or lists of rows as .npz or .json.
        scale: Member of the family ``scales``: what the scores of each example are multiplied by.
        source: ``rows``, or ``streamed``: no row is stored, gradients are made again for every score and
            multiplied whole; or ``recorded``: what every step of a training did. See
            ``streamfluence guide methods``.
        solver: Member of the family ``solvers``, for a source that solves the curvature.
        solver_options: Of the member, such as ``{ tolerance = 1e-4 }``.
        record: Folder of a training that ``streamfluence.record`` wrote, for ``recorded``.
        scan: Member of the family ``scans``, by which ``recorded`` walks its steps.
        scan_options: Of the member, such as ``{ curvature = "fisher" }``.
    """

    readouts: Auto | tuple[str, ...] = "auto"
    top_k: int | None = None
    subsets: str | None = None
    scale: str = "none"
    source: str = "rows"
    solver: str = "conjugate_gradients"
    solver_options: Mapping[str, Any] = field(default_factory=dict)
    record: str | None = None
    scan: str = "value_embedding"
    scan_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Compute:
    """How the work is cut and run; only batch_size, partition_examples, precision and threads decide bits.

    Attributes:
        batch_size: Examples of one forward pass.
        partition_examples: Examples of one partition, the unit that is lost and made again; a multiple
            of batch_size. ``auto`` makes about 128 partitions of 1,024 to 262,144 examples.
        precision: Of forward and backward; ``bf16`` is autocast.
        threads: Of torch, in each worker.
        executor: Member of the family ``executors``.
        workers: Processes at work at once; ``auto``: as many as the CPUs hold, or one on a GPU.
        dask: Address of the scheduler of a running cluster, on which tasks then run.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:1``.
        memory: What one worker may use, such as ``4GiB``; ``plan`` refuses what does not fit.
    """

    batch_size: int = 64
    partition_examples: int | Auto = "auto"
    precision: Literal["float32", "bf16"] = "float32"
    threads: int = 1
    executor: str = "processes"
    workers: int | Auto = "auto"
    dask: str | None = None
    device: str = "auto"
    memory: str | None = None


@dataclass(frozen=True)
class Job:
    """A job as the user means it: every default filled in, nothing looked up yet.

    Attributes:
        root: Folder against which its relative paths resolve.
        task: A Python file, or ``package.module:name``: the model, how to run it and its likelihood.
        checkpoints: Files or folders of weights, or patterns; several make an ensemble.
        train: Table of the reader of the training set: ``reader`` and its options.
        queries: One such table for each query set, by name; each may also have ``measurement``:
            ``"loss"`` (the default), ``"margin"``, ``"training_loss"`` or one of the task's own.
        readouts: Options of readouts, a table for each by its name; what has a table is read out.
        checkpoint_weights: Of each checkpoint in a score; the same for all when not set.
    """

    root: Path
    task: str
    checkpoints: tuple[str, ...]
    train: Mapping[str, Any]
    queries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    readouts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    checkpoint_weights: tuple[float, ...] | None = None
    model: Model = Model()
    sketch: Sketch = Sketch()
    feature: Feature = Feature()
    projection: Projection = Projection()
    curvature: Curvature = Curvature()
    rows: Rows = Rows()
    score: Score = Score()
    compute: Compute = Compute()
