"""Contract of a score source: blocks of scores of consecutive training examples, for a tile of queries.

Law: the scores of an example are the same however examples are cut into partitions and blocks.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamfluence.readouts.base import ScoreBlock
from streamfluence.run.opened import OpenRun

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
    """

    gives: Collection[str] = ()

    def __init__(self, run: OpenRun, device: str, label: str, spec: Mapping[str, Any]) -> None:
        self.run, self.device, self.label, self.spec = run, device, label, spec

    def tiles(self) -> list[Tile]:
        """Return the ranges of queries that are scored at a time; the run alone decides them."""
        raise NotImplementedError

    def blocks(self, wanted: Wanted) -> Iterator[ScoreBlock]:
        """Yield what is needed of some partitions' examples, in order; arrays may be reused."""
        raise NotImplementedError
