"""Sums of scores over given subsets of the examples: the predicted effect of removing each subset.

Memory is ``subsets * queries`` float64 sums.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from streamfluence.errors import InputError
from streamfluence.given import file_sha256
from streamfluence.readouts._subsets import open_subsets
from streamfluence.readouts.base import Arrays, Readout, ScoreBlock

_MEMBERSHIP_ENTRIES = 1 << 21  # float64 memberships held at once, 16 MiB


class SubsetSum(Readout):
    """The sum of scores over each subset of the examples.

    Args:
        subsets: Path of a ``.npy`` boolean mask ``(subset, example)``, which is mapped, or of a
            ``.npz`` or ``.json`` of lists of row numbers; in Python also such a mask or such lists.

    The result, and every state: ``subset_sums`` float64, shape ``(subset, query)``, and
    ``subset_counts`` int64, shape ``(subset,)``: the valid examples in each sum.

    Raises:
        InputError: If the subsets cannot be read or name rows that do not exist.
    """

    needs = ("scores",)
    query_axis: Mapping[str, int] = {"subset_sums": 1}

    def __init__(self, *, subsets: str | Sequence[Any] | np.ndarray) -> None:
        self.subsets = open_subsets(subsets)

    @classmethod
    def pinned(cls, options: Mapping[str, Any], root: Path, examples: int) -> dict[str, Any]:
        return {**options, "sha256": file_sha256(root / _path(options))}

    @classmethod
    def from_pinned(cls, pinned: Mapping[str, Any], root: Path) -> Self:
        path = root / _path(pinned)
        if pinned["sha256"] != file_sha256(path):
            raise InputError(
                f"{path} changed since these scores were asked for; score again under another --name"
            )
        return cls(subsets=str(path))

    def chunk(self, block: ScoreBlock) -> Arrays:
        sums = torch.zeros(len(self.subsets), block.scores.shape[1], dtype=torch.float64)
        counts = np.zeros(len(self.subsets), np.int64)
        step = max(1, _MEMBERSHIP_ENTRIES // max(len(self.subsets), 1))
        for low in range(0, len(block.valid), step):
            high = min(low + step, len(block.valid))
            inside = self.subsets.membership(block.start + low, block.start + high)
            counts += np.count_nonzero(inside & block.valid[low:high], axis=1)
            # torch and not numpy: the executor sets torch's threads, so bits agree among executors.
            scores = torch.from_numpy(block.scores[low:high].astype(np.float64))
            sums += torch.from_numpy(inside.astype(np.float64)) @ scores
        return {"subset_sums": sums.numpy(), "subset_counts": counts}

    def combine(self, a: Arrays, b: Arrays) -> Arrays:
        return {name: a[name] + b[name] for name in a}

    def result_bytes(self, n_examples: int, n_queries: int) -> int:
        """Return the bytes of the result.

        Raises:
            InputError: If the subsets are not subsets of ``n_examples`` examples.
        """
        self.subsets.check(n_examples)
        return len(self.subsets) * (8 * n_queries + 8)


def _path(options: Mapping[str, Any]) -> str:
    """Return the file of the subsets; arrays are for callers from Python, not for a job."""
    if not isinstance(options["subsets"], str):
        raise InputError(
            f"subsets = {options['subsets']!r}; name a file of a mask or of lists of rows"
        )
    return options["subsets"]
