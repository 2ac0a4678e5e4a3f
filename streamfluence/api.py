"""A finished or running run as Python objects: ranked examples, lazy score and row arrays."""

from typing import Any

from streamfluence.run.opened import OpenRun
from streamfluence.scoring.lazy import lazy_rows, lazy_scores, results
from streamfluence.stages.status import status
from streamfluence.stages.top import top


def open(path: str) -> "Run":
    """Open the run at ``path``, a folder or the address of one in an object store.

    Raises:
        InputError: If there is no run, or it was written in an unknown format.
    """
    return Run(path)


class Run:
    """One run, read only.

    Args:
        path: Folder or address of the run.
    """

    def __init__(self, path: str) -> None:
        self.path = str(path)
        self._run = OpenRun.open(self.path)

    @property
    def manifest(self) -> dict[str, Any]:
        """The method: everything that decides a number of this run but its data."""
        return self._run.manifest

    def status(self) -> dict[str, Any]:
        """Return what is done and what is missing."""
        return status(self.path)

    def top(
        self, query: int | str, k: int | None = None, name: str | None = None
    ) -> dict[str, Any]:
        """Return the examples that help and hurt a query most; see ``streamfluence top``."""
        return top(self.path, str(query), k=k, name=name)

    def scores(
        self, queries: str | None = None, damping: float | None = None, scale: str = "none"
    ) -> Any:
        """Return all scores as a lazy Dask array, shape ``(example, query)``, float32.

        Nothing is computed until asked for; each block of examples is one task. Quarantined
        rows are NaN. The sign: positive helps (see README), where the feature is the gradient.

        Args:
            queries: Name of the query set; not needed when there is only one.
            damping: Another damping than the rows were whitened with.
            scale: Multiplies the scores of each example: ``none``, ``cosine`` or ``relative``.
        """
        return lazy_scores(OpenRun.open(self.path), queries, damping, scale)

    def rows(self, example_set: str = "train", checkpoint: int = 0) -> Any:
        """Return rows in stored coordinates as a lazy Dask array, float32, ``(example, coordinate)``.

        Training rows are decoded; the rows of a query set are in the same coordinates. So
        ``rows("train", c) @ rows("test", c).T``, summed over checkpoints by their weights, is the
        scores times the number of training examples.

        Raises:
            IncompleteError: If rows are missing.
            DamageError: If rows do not belong together.
        """
        return lazy_rows(OpenRun.open(self.path), example_set, checkpoint)

    def results(self, name: str | None = None) -> dict[str, Any]:
        """Return what the readouts of finished scores kept, by ``readout.array``.

        For example ``self_influence.top_rows``, ``aggregate.group_sums`` or
        ``subset_sum.subset_sums``; the class of each readout says what its arrays are. What has
        one value an example, such as ``aggregate.query_mean`` or ``dense.scores``, is a lazy
        Dask array with the examples of the scored partitions in order; the rest is in memory.
        ``named.train.row`` and ``named.queries.row`` are the sorted rows of the training examples
        that are listed, and of the queries; ``...id``, ``...group``, ``...loss`` and ``...preview``
        say what they are.

        Args:
            name: Of the scores, when the run has several.

        Raises:
            IncompleteError: If they are not finished, or something they rest on is missing.
            DamageError: If something they rest on is not what it was.
        """
        return results(OpenRun.open(self.path), name)

    def __repr__(self) -> str:
        return f"Run({self.path!r})"
