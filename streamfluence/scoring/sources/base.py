"""Contract of a score source: blocks of scores of consecutive training examples, for a tile of queries.

Law: the scores of an example are the same however examples are cut into partitions and blocks.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamfluence.execution import Execution, Progress
from streamfluence.readouts.base import Arrays, ScoreBlock
from streamfluence.run.opened import OpenRun
from streamfluence.run.session import Session
from streamfluence.scoring.asked import Asked

Tile = tuple[int, int]


@dataclass(frozen=True)
class Wanted:
    """Which scores are wanted, and what beside them.

    Attributes:
        partitions: Of training examples, in order.
        needs: See ``Readout.needs``.
        tile: Queries from the first up to the second.
        block_rows: Examples of a block at most; by default what memory has room for.
    """

    partitions: Sequence[int]
    needs: Collection[str]
    tile: Tile
    block_rows: int | None = None


class Source:
    """Base of every score source; made of what every work unit knows.

    Args:
        device: Of products and of forward.
        label: Of the scores.
        spec: Their document.

    Attributes:
        gives: What of a block it can fill, see ``Readout.needs``; a readout that needs more is refused.
        damps: Whether a damping is part of it.
    """

    gives: Collection[str] = ()
    damps = True

    def __init__(self, run: OpenRun, device: str, label: str, spec: Mapping[str, Any]) -> None:
        self.run, self.device, self.label, self.spec = run, device, label, spec

    @classmethod
    def pinned(cls, run: OpenRun, asked: Asked, before: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the document of a score says of its source beside the name, JSON-able.

        Args:
            before: What it said when these scores were asked for before, which holds where nothing is
                asked.

        Raises:
            InputError: If what is asked for is not there, or means nothing to this source.
        """
        return {}

    @classmethod
    def meaning(cls, said: str) -> str:
        """Return what a score of it is and its sign, in one sentence.

        Args:
            said: What it is of the run's feature.
        """
        return said

    @classmethod
    def refuse(cls, run: OpenRun) -> None:
        """Raise InputError if it can make no scores of a run."""

    @classmethod
    def try_out(cls, session: Session, said: Mapping[str, Any]) -> None:
        """Raise InputError if it can make no scores of a model; called before any long work.

        Args:
            said: As ``pinned`` returns it.
        """

    def prepare(self, execution: Execution, progress: Progress) -> tuple[Arrays, dict[str, Any]]:
        """Return what is prepared before any score is made, and the facts of its making.

        A source that is not ``rows`` prepares ``directions.value``, the measurement of each query.
        What it says of itself in a record is the fact ``record``, a table.
        """
        raise NotImplementedError

    def tiles(self) -> list[Tile]:
        """Return the ranges of queries that are scored at a time; the run alone decides them."""
        raise NotImplementedError

    def blocks(self, wanted: Wanted) -> Iterator[ScoreBlock]:
        """Yield what is needed of some partitions' examples, in order; arrays may be reused."""
        raise NotImplementedError
