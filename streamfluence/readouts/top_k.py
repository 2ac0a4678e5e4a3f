"""The examples that help and that hurt each query most, with what is known of them.

Memory is ``2 * queries * k`` entries whatever the number of examples.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamfluence.readouts import _device_lists
from streamfluence.readouts._ranking import (
    best_of,
    checked_length,
    first_best,
    pack,
)
from streamfluence.readouts.base import Arrays, DeviceBlock, Readout, ScoreBlock

_SIGNS = {"positive": 1, "negative": -1}
_FIELDS = {"scores": np.float32, "rows": np.int64, "self_influence": np.float32, "loss": np.float32}
_MOST_HITS = 1 << 24  # scores of a block that are looked at one by one on a device: half a GiB
_MANY = 8  # above one candidate in so many scores, selecting by blocks is faster


class TopK(Readout):
    """The ``k`` largest and the ``k`` smallest scores of each query.

    Args:
        k: Examples in each list. Lists hold fewer, and are padded, when there are fewer valid examples.

    The result, and every state, is ``positive_scores`` float32, ``positive_rows`` int64 (global
    rows), ``positive_self_influence`` and ``positive_loss`` float32, and the same for
    ``negative``: shape ``(query, k)``, best first (``negative``: smallest first), ties in the
    order of rows, padded with NaN and row -1.
    """

    query_axis: Mapping[str, int] = {
        f"{side}_{field}": 0 for side in ("positive", "negative") for field in _FIELDS
    }

    def __init__(self, *, k: int = 100) -> None:
        self.k = checked_length(k)

    @classmethod
    def pinned(cls, options: Mapping[str, Any], root: Path, examples: int) -> dict[str, Any]:
        return {**options, "k": min(cls(**options).k, examples)}

    def chunk(self, block: ScoreBlock) -> Arrays:
        scores = np.ascontiguousarray(block.scores.T)
        nothing = {name: np.empty((len(scores), 0), dtype) for name, dtype in _FIELDS.items()}
        state: Arrays = {}
        for side, sign in _SIGNS.items():
            key = np.where(block.valid, sign * scores, -np.inf)
            candidates = _candidates(block, scores, first_best(key, self.k))
            state |= _with_side(side, best_of(nothing, candidates, "scores", sign, self.k))
        return state

    def combine(self, a: Arrays, b: Arrays) -> Arrays:
        state: Arrays = {}
        for side, sign in _SIGNS.items():
            best = best_of(_of_side(a, side), _of_side(b, side), "scores", sign, self.k)
            state |= _with_side(side, best)
        return state

    def fold(self, state: Arrays, block: ScoreBlock) -> Arrays:
        """Return ``combine(state, chunk(block))``; looks only at scores that beat the last listed.

        A score equal to the last listed has a later row, and loses.
        """
        if isinstance(block, DeviceBlock):
            folded: Arrays = self._fold_on_device(state, block)
            return folded
        full = state and all(np.all(state[f"{side}_rows"][:, -1] >= 0) for side in _SIGNS)
        if not full:
            return super().fold(state, block)
        high, low = state["positive_scores"][:, -1], state["negative_scores"][:, -1]
        hits = np.flatnonzero((block.scores > high) | (block.scores < low))
        if len(hits) * _MANY > block.scores.size:
            return super().fold(state, block)
        return self._add(state, block, hits)

    def settle(self, state: Arrays) -> Arrays:
        return {
            name: values.cpu().numpy() if isinstance(values, Tensor) else values
            for name, values in state.items()
        }

    def _fold_on_device(self, state: Any, block: DeviceBlock) -> Any:
        """Return what ``fold`` does, as tensors on the block's device; ``settle`` makes arrays of it."""
        device, n_queries = block.tensor.device, block.tensor.shape[1]
        lists = {
            side: _tensors(_of_side(state, side), device)
            if state
            else _no_lists(n_queries, self.k, device)
            for side in _SIGNS
        }
        full = all(bool((fields["rows"][:, -1] >= 0).all()) for fields in lists.values())
        last = {side: fields["scores"][:, -1] for side, fields in lists.items()} if full else None
        mask = _device_lists.wanted(block, last, self.k)
        if int(mask.sum()) > _MOST_HITS:
            return super().fold(self.settle(state), block)
        query, example = _device_lists.places(mask)
        known = _tensors({"self_influence": block.self_influence, "loss": block.loss}, device)
        fields = {
            "scores": block.tensor[example, query],
            "rows": block.start + example,
            **{name: column[example] for name, column in known.items()},
        }
        found = _device_lists.listed(query, fields, n_queries)
        new: dict[str, Tensor] = {}
        for side, sign in _SIGNS.items():
            new |= _with_side(side, _device_lists.best_of(lists[side], found, sign, self.k))
        return new

    def _add(self, state: Arrays, block: ScoreBlock, hits: np.ndarray) -> Arrays:
        """Return ``state`` with the scores at the flat positions ``hits`` considered."""
        example, query = np.divmod(hits, max(block.scores.shape[1], 1))
        usable = block.valid[example]
        example, query = example[usable], query[usable]
        fields = {
            "scores": block.scores[example, query],
            "rows": block.start + example,
            "self_influence": block.self_influence[example],
            "loss": block.loss[example],
        }
        packed = pack(query, fields, block.scores.shape[1])
        new: Arrays = {}
        for side, sign in _SIGNS.items():
            new |= _with_side(side, best_of(_of_side(state, side), packed, "scores", sign, self.k))
        return new

    def result_bytes(self, n_examples: int, n_queries: int) -> int:
        entry = sum(np.dtype(dtype).itemsize for dtype in _FIELDS.values())
        return len(_SIGNS) * n_queries * self.k * entry


def _candidates(block: ScoreBlock, scores: np.ndarray, position: np.ndarray) -> Arrays:
    """Return the fields of the examples at ``position``, shape ``(query, candidate)``."""
    valid = block.valid[position]
    return {
        "scores": np.where(valid, np.take_along_axis(scores, position, 1), np.float32(np.nan)),
        "rows": np.where(valid, block.start + position, -1),
        "self_influence": np.where(valid, block.self_influence[position], np.float32(np.nan)),
        "loss": np.where(valid, block.loss[position], np.float32(np.nan)),
    }


def _no_lists(n_queries: int, length: int, device: torch.device) -> dict[str, Tensor]:
    """Return lists of nothing but padding."""
    return {
        name: torch.full((n_queries, length), -1, device=device)
        if dtype is np.int64
        else torch.full((n_queries, length), torch.nan, device=device)
        for name, dtype in _FIELDS.items()
    }


def _tensors(arrays: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
    return {name: torch.as_tensor(array, device=device) for name, array in arrays.items()}


def _of_side(state: Mapping[str, Any], side: str) -> dict[str, Any]:
    return {name: state[f"{side}_{name}"] for name in _FIELDS}


def _with_side(side: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{side}_{name}": values for name, values in fields.items()}
