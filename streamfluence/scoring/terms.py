"""The two sides of a product: stored rows as they are read, and queries with their weight."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from torch import Tensor

from streamfluence.codecs.base import Codec


@dataclass(frozen=True)
class RowBlock:
    """Stored rows of consecutive examples at one checkpoint; arrays may be reused for the next block.

    Attributes:
        start: Global row of the first example.
        codes, scale: As the codec encoded them; None when only the rest was asked for.
        flags: Shape ``(example,)``, uint8; 0 for a good row.
        self_influence, loss: Shape ``(example,)``, float32; None when they were not asked for.
        group: Shape ``(example,)``, int64, or None.
        columns: What a scale looks at, by name, each ``(example,)``, float32.
    """

    start: int
    codes: np.ndarray | None
    scale: np.ndarray | None
    flags: np.ndarray
    self_influence: np.ndarray | None
    loss: np.ndarray | None
    group: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)


class RowSource(Protocol):
    """Where the rows of one checkpoint come from."""

    def blocks(self, block_rows: int) -> Iterator[RowBlock]:
        """Yield the rows in order, at most ``block_rows`` at a time, the same cuts at every checkpoint."""
        ...


@dataclass(frozen=True)
class Term:
    """What one checkpoint adds to the scores: ``weight * decode(rows) @ queries.T``.

    Attributes:
        source: The checkpoint's stored rows.
        codec: What encoded them.
        queries: ``codec.query`` of the whitened queries, shape ``(query, stored)``, float32. The
            product runs on their device.
        weight: The checkpoint's weight, 1/n included.
    """

    source: RowSource
    codec: Codec
    queries: Tensor
    weight: float

    def of_queries(self, chosen: np.ndarray) -> "Term":
        """Return the term of some of its queries."""
        return replace(self, queries=self.queries[chosen])
