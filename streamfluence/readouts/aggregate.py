"""Scores added up: over the queries for each example, and over the examples of each group.

Memory is ``groups * queries`` float64 sums, whatever the number of examples.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from streamfluence.errors import BudgetError, InputError
from streamfluence.readouts.base import Arrays, Readout, ScoreBlock


class Aggregate(Readout):
    """Sum and mean over queries of each example, and sums over examples of each (group, query).

    Args:
        max_groups: More groups than this are refused, because every group costs
            ``8 * queries`` bytes of memory in every worker.

    Stored with each partition: ``query_sum`` and ``query_mean`` float32, shape ``(example,)``, NaN
    for invalid rows. The result, and every state: ``groups`` int64, sorted, and ``group_counts``
    int64, shape ``(group,)``, the valid examples of each; ``group_sums`` float64, shape
    ``(group, query)``. It is empty when the data set names no groups.

    Raises:
        BudgetError: While scoring, if there are more than ``max_groups`` groups.
    """

    query_axis: Mapping[str, int] = {"group_sums": 1}

    def __init__(self, *, max_groups: int = 10_000) -> None:
        if max_groups < 1:
            raise InputError(f"max_groups must be 1 or more, got {max_groups}")
        self.max_groups = max_groups

    def chunk(self, block: ScoreBlock) -> Arrays:
        if block.group is None:
            return {}
        groups, place = np.unique(block.group[block.valid], return_inverse=True)
        scores = torch.from_numpy(block.scores[block.valid].astype(np.float64))
        sums = torch.zeros(len(groups), scores.shape[1], dtype=torch.float64)
        state = {
            "groups": groups,
            "group_counts": np.bincount(place, minlength=len(groups)),
            "group_sums": sums.index_add_(0, torch.from_numpy(place), scores).numpy(),
        }
        return self._checked(state)

    def combine(self, a: Arrays, b: Arrays) -> Arrays:
        if not a or not b:
            return a or b
        groups = np.union1d(a["groups"], b["groups"])
        state = {
            "groups": groups,
            "group_counts": np.zeros(len(groups), np.int64),
            "group_sums": np.zeros((len(groups), a["group_sums"].shape[1])),
        }
        return _add(_add(self._checked(state), a), b)

    def fold(self, state: Arrays, block: ScoreBlock) -> Arrays:
        """Return ``combine(state, chunk(block))``, in place once every group has been met."""
        chunk = self.chunk(block)
        if state and chunk and np.isin(chunk["groups"], state["groups"]).all():
            return _add(state, chunk)
        return self.combine(state, chunk)

    def per_example(self, block: ScoreBlock) -> Arrays:
        total = np.where(block.valid, block.scores.sum(axis=1, dtype=np.float64), np.nan)
        mean = total / max(block.scores.shape[1], 1)
        return {"query_sum": total.astype(np.float32), "query_mean": mean.astype(np.float32)}

    def join(self, parts: Sequence[Arrays], counts: Sequence[int]) -> Arrays:
        joined = super().join(parts, counts)
        if "query_sum" in joined:
            sums = np.stack([part["query_sum"] for part in parts])
            total: np.ndarray = np.asarray(sums.sum(axis=0, dtype=np.float64))
            joined["query_sum"] = total.astype(np.float32)
            joined["query_mean"] = (total / max(sum(counts), 1)).astype(np.float32)
        return joined

    def result_bytes(self, n_examples: int, n_queries: int) -> int:
        groups = min(self.max_groups, n_examples)
        return 8 * n_examples + groups * (16 + 8 * n_queries)

    def _checked(self, state: Arrays) -> Arrays:
        if len(state["groups"]) > self.max_groups:
            queries = state["group_sums"].shape[1]
            raise BudgetError(
                f"aggregate met {len(state['groups']):,} groups, but max_groups = {self.max_groups:,}; "
                f"raise it (each group takes {8 * queries:,} bytes of memory in every worker), "
                "or name a coarser group field"
            )
        return state


def _add(state: Arrays, part: Arrays) -> Arrays:
    """Return ``state`` with ``part``, whose groups it has, added in place."""
    place = np.searchsorted(state["groups"], part["groups"])
    state["group_counts"][place] += part["group_counts"]
    state["group_sums"][place] += part["group_sums"]
    return state
