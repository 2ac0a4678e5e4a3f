"""A judgement as a committed result of its ground truth, so that methods can be compared later."""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import numpy as np

from streamfluence.evaluation.truth.kept import Truth


def keep_result(
    truth: Truth, kind: str, result: dict[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Commit a result in the ground truth, its tables as arrays, and return it with its place.

    The name is a digest of everything the result says, so that the same judgement is stored once.

    Args:
        arrays: What is stored beside it.
    """
    tables = {key: value for key, value in result.items() if _is_table(value)}
    passing = {*tables, "retrained", "retrainings", "of", "truth", "train_seconds"}
    said = {key: value for key, value in result.items() if key not in passing}
    digest = sha256(json.dumps([said, tables], sort_keys=True, default=str).encode()).hexdigest()
    stage = f"judged/{kind}-{digest[:12]}"
    columns = {
        f"{key}.{column}": np.array([row[column] for row in rows])
        for key, rows in tables.items()
        for column in rows[0]
        if not isinstance(rows[0][column], (str, type(None)))
    }
    truth.store.commit(stage, 0, {**columns, **arrays}, {"result": said})
    return {**result, "kept_as": stage}


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)
