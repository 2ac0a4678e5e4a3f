"""What becomes of queries before they meet rows: centred over checkpoints, multiplied by a scale."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from streamfluence.registry import member
from streamfluence.run.columns import column
from streamfluence.run.feature import feature_of
from streamfluence.run.opened import OpenRun
from streamfluence.run.rows import stored_rows
from streamfluence.scales.base import Scale


def scale_of(name: str) -> Scale | None:
    """Return a scale; None for the one that multiplies by 1."""
    return None if name == "none" else member("scales", name)()


def centred(queries: Sequence[Tensor], factors: Sequence[float]) -> list[Tensor]:
    """Return queries of every checkpoint less their mean over checkpoints, ``(query, feature)`` each.

    The weighted sum over checkpoints of products with rows is then that of rows and queries both centred:
    ``sum_c w_c (x_c - x)(q_c - q) = sum_c w_c x_c (q_c - q)``, since ``sum_c w_c (q_c - q) = 0``.
    """
    doubles = [factor * rows.double() for factor, rows in zip(factors, queries, strict=True)]
    mean = torch.stack(doubles).sum(0) / sum(factors)
    return [(rows.double() - mean).to(rows) for rows in queries]


def scaled_queries(
    run: OpenRun,
    example_set: str,
    queries: Sequence[Tensor],
    scale: Scale,
    tile: tuple[int, int] | None,
) -> list[Tensor]:
    """Return queries of every checkpoint times what the scale says, and n where it leaves out the 1/n."""
    low, high = tile or (0, len(queries[0]))
    columns = {
        name: np.stack([column(rows, name)[low:high] for rows in stored_rows(run, example_set)])
        for name in scale.columns
    }
    found = scale.of_queries(columns)
    if found is not None:
        pairs = zip(queries, torch.from_numpy(found), strict=True)
        queries = [rows * multiplier[:, None] for rows, multiplier in pairs]
    if not scale.per_example and feature_of(run.method).predicts:
        queries = [rows * run.train.count for rows in queries]
    return list(queries)
