"""How many examples have a score above a number, of each query."""

from collections.abc import Mapping

import numpy as np

from streamfluence.readouts.base import Arrays, Readout, ScoreBlock


class Exceeding(Readout):
    """Counts of scores above a number: ``counts`` int64, shape ``(query,)``.

    Args:
        above: The number.
    """

    needs = ("scores",)
    query_axis: Mapping[str, int] = {"counts": 0}

    def __init__(self, *, above: float = 0.0) -> None:
        self.above = above

    def chunk(self, block: ScoreBlock) -> Arrays:
        return {"counts": np.count_nonzero(block.scores[block.valid] > self.above, axis=0)}

    def combine(self, a: Arrays, b: Arrays) -> Arrays:
        return {"counts": a["counts"] + b["counts"]}

    def result_bytes(self, n_examples: int, n_queries: int) -> int:
        return 8 * n_queries
