"""Every score, written to storage: the whole (example, query) matrix, only when asked for."""

from collections.abc import Mapping

import numpy as np

from streamfluence.readouts.base import Arrays, Readout, ScoreBlock


class Dense(Readout):
    """The scores themselves: ``scores`` float32, shape ``(example, query)``, NaN for invalid rows.

    Stored with each partition and never merged in memory; four bytes per example and query.
    """

    needs = ("scores",)
    query_axis: Mapping[str, int] = {"scores": 1}

    def per_example(self, block: ScoreBlock) -> Arrays:
        return {"scores": np.where(block.valid[:, None], block.scores, np.float32(np.nan))}

    def result_bytes(self, n_examples: int, n_queries: int) -> int:
        return 4 * n_examples * n_queries
