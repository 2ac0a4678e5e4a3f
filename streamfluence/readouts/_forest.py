"""An isolation forest as plain arrays: grown by scikit-learn, read by numpy, so that workers need no more.

Every tree splits a few rows at random until each is alone; a row that is alone after few splits is
unusual. A row's value depends on that row and the arrays alone.
"""

import importlib.util
from typing import Any

import numpy as np

from streamfluence.errors import DamageError, InputError

MOST_ROWS = 256  # a tree is grown from, and what its depth follows from
_TILE_ROWS = 1024
_WHOLE, _REAL = ("feature", "left", "right"), ("threshold", "length")
_MISSING = (
    "the readout 'outliers' grows its forest with scikit-learn, which is not installed; "
    "pip install 'streamfluence[outliers]'"
)


def refuse_without_package() -> None:
    """Raise InputError where scikit-learn is not installed."""
    if importlib.util.find_spec("sklearn") is None:
        raise InputError(_MISSING)


def grown(rows: np.ndarray, trees: int, seed: int) -> dict[str, np.ndarray]:
    """Return a forest of at most ``trees`` trees, as arrays of shape ``(tree, node)``.

    Args:
        rows: Shape ``(example, coordinate)``, float32.
        seed: Decides every split.

    Returns:
        ``feature`` and ``left`` and ``right`` int32, ``threshold`` float64: a row goes left where its
        feature is at most the threshold, and stays where ``left`` is -1. ``length`` float64: how
        many splits a row that stays has behind it, and those that its leaf would need on average.
        ``usual`` float64, shape ``(1,)``: the expected length of all trees together.
    """
    try:
        from sklearn.ensemble import IsolationForest
    except ImportError as error:
        raise InputError(_MISSING) from error
    most = min(MOST_ROWS, len(rows))
    forest = IsolationForest(n_estimators=trees, max_samples=most, random_state=seed).fit(rows)
    found = [each.tree_ for each in forest.estimators_]
    nodes = max(tree.node_count for tree in found)
    arrays = {
        "feature": np.zeros((trees, nodes), np.int32),
        "left": np.full((trees, nodes), -1, np.int32),
        "right": np.full((trees, nodes), -1, np.int32),
        "threshold": np.zeros((trees, nodes)),
        "length": np.zeros((trees, nodes)),
    }
    for place, tree in enumerate(found):
        inner = np.flatnonzero(tree.children_left >= 0)
        arrays["feature"][place, inner] = tree.feature[inner]
        arrays["threshold"][place, inner] = tree.threshold[inner]
        arrays["left"][place, inner] = tree.children_left[inner]
        arrays["right"][place, inner] = tree.children_right[inner]
        lengths = _depths(tree) + average_length(tree.n_node_samples)
        arrays["length"][place, : tree.node_count] = lengths
    return {**arrays, "usual": trees * average_length(np.array([most]))}


def checked(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a stored forest in which every row comes to an end.

    Raises:
        DamageError: If it is none that ``grown`` returned.
    """
    trees = [arrays.get(name, np.empty(0)) for name in (*_WHOLE, *_REAL)]
    shape, kinds = trees[0].shape, "".join(each.dtype.kind for each in trees)
    sound = len(shape) == 2 and all(each.shape == shape for each in trees) and kinds == "iiiff"
    sound = sound and arrays["feature"].min(initial=0) >= 0
    if sound:
        inner, place = arrays["left"] >= 0, np.arange(shape[1])
        for child in (arrays["left"], arrays["right"]):
            sound &= bool(np.all(~inner | ((child > place) & (child < shape[1]))))
    if not sound or getattr(arrays.get("usual"), "shape", None) != (1,):
        raise DamageError("what the readout 'outliers' prepared is no forest; score again")
    return arrays


def isolation(arrays: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Return how unusual each row is, float64, shape ``(example,)``: above 0 to 1, usual ones below 0.5.

    Source:
        Liu, Ting and Zhou, Isolation Forest, https://doi.org/10.1109/ICDM.2008.17, equation 2.
    """
    if arrays["feature"].max(initial=0) >= rows.shape[1]:
        raise DamageError("what the readout 'outliers' prepared is of longer rows; score again")
    tiles = [rows[low : low + _TILE_ROWS] for low in range(0, len(rows), _TILE_ROWS)]
    lengths = np.concatenate([_lengths(arrays, tile) for tile in tiles] or [np.empty(0)])
    return np.asarray(2.0 ** -(lengths / arrays["usual"]))


def average_length(counts: np.ndarray) -> np.ndarray:
    """Return the mean number of splits until one of ``counts`` rows is alone, equation 1 there."""
    many = np.maximum(counts, 2).astype(np.float64)
    lengths = 2.0 * (np.log(many - 1.0) + np.euler_gamma) - 2.0 * (many - 1.0) / many
    return np.where(counts > 2, lengths, np.where(counts == 2, 1.0, 0.0))


def _lengths(arrays: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Return the length of each row in all trees together."""
    total, example = np.zeros(len(rows)), np.arange(len(rows))
    for place in range(len(arrays["left"])):
        feature, threshold, left, right, length = (
            arrays[name][place] for name in ("feature", "threshold", "left", "right", "length")
        )
        node = np.zeros(len(rows), np.int64)
        while (left[node] >= 0).any():
            to_left = rows[example, feature[node]] <= threshold[node]
            node = np.where(left[node] < 0, node, np.where(to_left, left[node], right[node]))
        total += length[node]
    return total


def _depths(tree: Any) -> np.ndarray:
    """Return how many splits are above each node; parents come before their children."""
    depths = np.zeros(tree.node_count)
    for node in np.flatnonzero(tree.children_left >= 0):
        depths[[tree.children_left[node], tree.children_right[node]]] = depths[node] + 1
    return depths
