"""Contract of a readout: what is kept of a block of scores, in memory that does not grow with the examples.

``chunk`` turns one block into a small state, ``combine`` is associative (states
are combined in the order of the examples), ``finalize`` turns the last state
into the result. What has one value per example goes through ``per_example``
and is stored with its partition, never merged in memory.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import Tensor

Arrays = dict[str, np.ndarray]
NEEDS = ("scores", "rows", "columns", "self_influence")


@dataclass(frozen=True)
class ScoreBlock:
    """What is known of consecutive examples; None where no readout of the pass ``needs`` it.

    Attributes:
        start: Global row of the first example.
        scores: Shape ``(example, query)``, float32; 0 where not ``valid``.
        valid: Shape ``(example,)``, bool; False for rows that were not finite.
        self_influence, loss: Columns, shape ``(example,)``, float32. Where scores are not made of rows
            ``self_influence`` is NaN; a readout that cannot do without it names it in ``needs``.
        group: A column, shape ``(example,)``, int64; also None when the data set names no groups.
        rows: The decoded rows at each checkpoint, shape ``(example, coordinate)``, float32, in stored
            coordinates, whose number may differ from checkpoint to checkpoint; whitened, so of
            comparable size; no weight is in them. 0 where not ``valid``.
        weights: Of the checkpoints, 1/n included: a score is the sum of ``weights[c]`` times the
            product of ``rows[c]`` with a query's row.

    The arrays are reused for the next block: keep copies, never views.
    """

    start: int
    scores: np.ndarray
    valid: np.ndarray
    self_influence: np.ndarray
    loss: np.ndarray
    group: np.ndarray | None
    rows: Sequence[np.ndarray] | None = None
    weights: Sequence[float] = ()


@dataclass(frozen=True)
class Sample:
    """Rows of a seeded sample of the training set, the same however it is cut into partitions.

    Attributes:
        rows: As those of a ``ScoreBlock``, of good rows alone.
        examples: Their global rows, sorted, shape ``(example,)``, int64.
        seed: For what is drawn at random.
    """

    rows: Sequence[np.ndarray]
    examples: np.ndarray
    seed: int


class DeviceBlock(ScoreBlock):
    """A block whose scores lie on a device; a readout that asks for ``scores`` has them copied.

    Attributes:
        tensor: ``scores`` on the device.
        usable: ``valid`` on the device.
    """

    tensor: Tensor
    usable: Tensor

    def __init__(self, tensor: Tensor, usable: Tensor, **rest: Any) -> None:
        for name, value in {"tensor": tensor, "usable": usable, **rest}.items():
            object.__setattr__(self, name, value)

    @cached_property
    def scores(self) -> np.ndarray:
        return self.tensor.cpu().numpy()


class Readout:
    """Base of every readout; options arrive as keyword arguments of ``__init__``.

    Attributes:
        needs: What of a block it reads, of ``scores``, ``rows``, ``columns`` and ``self_influence`` (one of
            the columns). Nothing else is there for sure, and what no readout needs is not even read.
        query_axis: Of the arrays that have one, the axis that counts queries.
        sample_examples: How many rows ``prepare`` wants to see; 0 where nothing is prepared.
    """

    needs: Collection[str] = ("scores", "columns")
    query_axis: Mapping[str, int] = {}
    sample_examples: int = 0

    @classmethod
    def pinned(cls, options: Mapping[str, Any], root: Path, examples: int) -> dict[str, Any]:
        """Return the options to be stored with a score, JSON-able, so that they decide its result.

        Args:
            options: Checked by the signature; what is not given has its default.
            root: The job's folder, against which relative paths resolve.
            examples: Of the training set.

        Raises:
            InputError: If they cannot be used, or a package is missing.
        """
        return dict(options)

    @classmethod
    def from_pinned(cls, pinned: Mapping[str, Any], root: Path) -> Self:
        """Return the readout of what ``pinned`` returned.

        Raises:
            InputError: If a file is no longer what it was.
        """
        return cls(**pinned)

    def prepare(self, sample: Sample) -> Arrays:
        """Return what every block is read with, from rows of a sample; called once a score.

        The arrays are committed before any block is read, and results rest on them.
        """
        return {}

    def load(self, prepared: Arrays) -> None:
        """Take what ``prepare`` returned, before the first block; members without it never get here."""

    def chunk(self, block: ScoreBlock) -> Arrays:
        """Return the state of one block; {} when there is none."""
        return {}

    def combine(self, a: Arrays, b: Arrays) -> Arrays:
        """Return the state of both; ``a`` lies before ``b`` in the order of examples."""
        return {}

    def fold(self, state: Arrays, block: ScoreBlock) -> Arrays:
        """Return ``combine(state, chunk(block))``, perhaps faster; ``{}`` is the state of nothing.

        ``block`` lies after everything in ``state``, whose arrays may be overwritten.
        """
        chunk = self.chunk(block)
        return self.combine(state, chunk) if state else chunk

    def settle(self, state: Arrays) -> Arrays:
        """Return a state after the last ``fold`` of some blocks, as arrays.

        A member that folds a ``DeviceBlock`` may keep its state on the device until then.
        """
        return state

    def join(self, parts: Sequence[Arrays], counts: Sequence[int]) -> Arrays:
        """Return the arrays for all queries, of those for consecutive queries of the same examples.

        Args:
            parts: States, or what ``per_example`` gave.
            counts: Queries of each part.
        """
        first, *_ = parts
        return {
            name: np.concatenate([part[name] for part in parts], axis=self.query_axis[name])
            if name in self.query_axis
            else array
            for name, array in first.items()
        }

    def finalize(self, state: Arrays) -> Arrays:
        """Return the result."""
        return state

    def named_rows(self, result: Arrays) -> np.ndarray:
        """Return the global rows of the examples that a result names, the first of every list first.

        They are what its arrays named ``rows`` or ``..._rows`` hold, whose last axis is a list, best
        first; -1 fills.
        """
        rows, ranks = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for name, array in result.items():
            if name == "rows" or name.endswith("_rows"):
                rows.append(array.ravel().astype(np.int64))
                ranks.append(np.indices(array.shape)[-1].ravel())
        first = np.argsort(np.concatenate(ranks), kind="stable")
        listed = np.concatenate(rows)[first]
        return listed[listed >= 0]

    def per_example(self, block: ScoreBlock) -> Arrays:
        """Return arrays with a leading example axis, stored with the partition; {} when there are none."""
        return {}

    def result_bytes(self, n_examples: int, n_queries: int) -> int:
        """Return the bytes on disk of everything this readout stores."""
        raise NotImplementedError

    def prepared_bytes(self) -> int:
        """Return the bytes on disk of what ``prepare`` returns, at most."""
        return 0
