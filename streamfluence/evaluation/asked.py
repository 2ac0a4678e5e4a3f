"""What a judgement is asked for, in groups: which scores, which trainings, which other settings."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Judged:
    """The scores that are judged.

    Attributes:
        queries, scores: Name of the query set, or of the scores, where the run has several.
        damping: Judge the scores at another damping.
    """

    queries: str | None = None
    scores: str | None = None
    damping: float | None = None


@dataclass(frozen=True)
class Trainings:
    """The trainings that scores are judged by.

    Attributes:
        truth: Folder of the ground truth; None is one beside the run that other runs of the same
            task and data share.
        seeds: Trainings of each choice of examples, with seeds 0 to ``seeds - 1``.
        draw_seed: Of the draw of examples.
        train: False judges by what is there.
        worker: ``(i, N)``: train this share and judge nothing.
    """

    truth: str | None = None
    seeds: int = 2
    draw_seed: int = 0
    train: bool = True
    worker: tuple[int, int] | None = None


@dataclass(frozen=True)
class Others:
    """Other settings that are tried beside those of a run, each value alone.

    Attributes:
        row_bytes, widths, curvatures, damping: Values of ``rows.bytes``, ``projection.width``,
            ``curvature.name`` and ``curvature.damping``.
    """

    row_bytes: Sequence[int] = ()
    widths: Sequence[int] = ()
    curvatures: Sequence[str] = ()
    damping: Sequence[float] = ()


@dataclass(frozen=True)
class Compared:
    """On what, and with what, scores are compared without retraining.

    Attributes:
        sample: Training examples, drawn over the whole training set.
        queries: Name of the query set, where the run has several; ``n_queries`` of it are taken.
        k: How many of the largest scores are compared as sets.
        by_layer: Also solve the reference layer by layer, as the rows are whitened by default; None
            does so for runs whose curvature is by layer and whose layers are few.
        double: Solve the reference in float64, where the model can run in it.
        solver: Member of the family ``solvers`` that solves it.
    """

    sample: int = 512
    queries: str | None = None
    n_queries: int = 16
    k: int = 10
    by_layer: bool | None = None
    double: bool = False
    solver: str = "conjugate_gradients"
