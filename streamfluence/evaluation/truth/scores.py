"""What a run's scores predict for retraining; one block of rows is in memory at a time."""

from collections.abc import Iterator, Sequence

import numpy as np

from streamfluence.columns import SELF_INFLUENCE
from streamfluence.errors import InputError
from streamfluence.evaluation.asked import Judged
from streamfluence.evaluation.retraining import Subset
from streamfluence.evaluation.truth.kept import Truth
from streamfluence.execution import Execution, Progress
from streamfluence.layout import Span, cut
from streamfluence.run.feature import checkpoint_factors
from streamfluence.run.finished import finished, read_spec
from streamfluence.run.opened import OpenRun
from streamfluence.run.rows import stored_rows
from streamfluence.run.sets import pinned_query_sets, pinned_score_names
from streamfluence.scoring.asked import Asked
from streamfluence.scoring.score import score_set
from streamfluence.scoring.source import label_scores

_BLOCK_ROWS = 8192


def judged_query_set(run: OpenRun, judged: Judged) -> str:
    """Return the query set that is judged: that of the scores, the named one, or the only one.

    Raises:
        InputError: If there is none, or the names contradict each other.
    """
    queries, scores = judged.queries, judged.scores
    if scores is not None:
        if scores not in pinned_score_names(run):
            known = ", ".join(pinned_score_names(run)) or "none"
            raise InputError(f"{run.url} has no scores {scores!r}; there are: {known}")
        of_scores: str = read_spec(run, scores)["queries"]
        if queries not in (None, of_scores):
            raise InputError(f"scores {scores!r} are of the queries {of_scores!r}, not {queries!r}")
        return of_scores
    names = pinned_query_sets(run)
    chosen = queries or (names[0] if len(names) == 1 else None)
    if chosen not in names:
        raise InputError(
            f"{run.url} has query sets {', '.join(names) or 'none'}; name one of them by --queries"
        )
    return str(chosen)


def judged_scores(
    run: OpenRun,
    example_set: str,
    judged: Judged,
    execution: Execution,
    progress: Progress,
) -> str:
    """Return the name of finished scores to judge; makes them if a damping was not scored yet.

    Raises:
        InputError: If the scores leave out partitions, or both a name and a damping are given.
        IncompleteError: If rows are missing.
    """
    scores, damping = judged.scores, judged.damping
    if scores is not None and damping is not None:
        raise InputError("give either --scores or --damping: named scores have a damping already")
    if scores is None:
        scores = score_set(run, example_set, Asked(), damping, None, execution, progress).label
    if finished(run, scores).spec["missing_partitions"]:
        raise InputError(
            f"scores {scores!r} leave out partitions of the training set, so their sums over subsets mean "
            f"nothing; run `streamfluence collect` and score under another --name"
        )
    return scores


class JudgedScores:
    """Scores of a run, computed from its rows a partition at a time and never kept.

    Attributes:
        spec: The pinned settings of the scores.
        without_score: Rows met so far that are not finite and so have no score; they count as 0.
    """

    def __init__(self, run: OpenRun, label: str) -> None:
        self.run = run
        self.label, self.spec = label, finished(self.run, label).spec
        self.count = self.run.train.count
        self.without_score: set[int] = set()

    def blocks(self, rows: np.ndarray | None = None) -> Iterator[tuple[Span, np.ndarray]]:
        """Yield ``(span, scores)``, scores float64 ``(example, query)``, in the order of examples.

        Args:
            rows: Only partitions that hold one of these.
        """
        wanted = range(self.run.train.partitions)
        if rows is not None:
            wanted = np.unique(self.run.train.owners(np.asarray(rows))).tolist()
        for partition in wanted:
            found = label_scores(self.run, self.label, self.spec, partition)
            for part in cut(Span(0, len(found)), _BLOCK_ROWS):
                block = found[part.start : part.stop].astype(np.float64)
                missing = np.isnan(block).any(axis=1)
                block[missing] = 0
                start = self.run.train.spans[partition].start
                self.without_score.update((start + part.start + np.flatnonzero(missing)).tolist())
                yield Span(start + part.start, start + part.stop), block

    def subset_effects(self, truth: Truth, subsets: Sequence[Subset]) -> np.ndarray:
        """Return what is predicted of every subset but for a constant, ``(subset, query)``."""
        total = np.zeros(())
        for span, block in self.blocks():
            kept = np.stack([truth.kept(subset, span.start, span.stop) for subset in subsets])
            total = total - kept.astype(np.float64) @ block
        return total

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """Return the scores of chosen rows, ``(row, query)``, in their order."""
        found: dict[int, np.ndarray] = {}
        wanted = np.unique(rows)
        for span, block in self.blocks(wanted):
            for row in wanted[(wanted >= span.start) & (wanted < span.stop)]:
                found[int(row)] = block[row - span.start]
        return np.stack([found[int(row)] for row in rows])

    def largest(self, number: int, queries: np.ndarray) -> np.ndarray:
        """Return the rows with the largest sum of absolute scores over ``queries``, the largest first."""
        rows, sums = np.empty(0, np.int64), np.empty(0)
        for span, block in self.blocks():
            rows = np.concatenate([rows, np.arange(span.start, span.stop)])
            sums = np.concatenate([sums, np.abs(block[:, queries]).sum(axis=1)])
            order = np.argsort(-sums, kind="stable")[:number]
            rows, sums = rows[order], sums[order]
        return rows

    def column(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return ``loss`` (mean over checkpoints) or ``self_influence`` (in the unit of scores) of rows."""
        total = np.zeros(len(rows))
        factors = np.asarray(checkpoint_factors(self.run.method, self.count))
        mean = np.full(len(factors), 1 / len(factors))
        scale = factors if name == SELF_INFLUENCE else mean
        for stored, factor in zip(stored_rows(self.run, "train"), scale, strict=True):
            for receipt, inside in stored.holding(rows):
                values = self.run.read(receipt, name)
                total[inside] += factor * values[rows[inside] - receipt.start]
        return total
