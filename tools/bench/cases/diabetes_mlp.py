"""Case (d): regression on scikit-learn's diabetes data, SGD with momentum and weight decay."""

import numpy as np
from sklearn.datasets import load_diabetes

from cases.base import Case, Recipe, Split

N_QUERIES = 100


def diabetes() -> Split:
    """Return 342 training examples and 100 queries, features and targets standardised over all."""
    x, y = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = ((values - values.mean(0)) / values.std(0) for values in (x[order], y[order]))
    x, y = x.astype(np.float32), y.astype(np.float32)[:, None]
    return Split.of(x, y, slice(N_QUERIES, None), slice(N_QUERIES))


CASE = Case(
    key="d",
    name="diabetes_mlp",
    title="regression net on diabetes data, SGD with momentum and weight decay",
    recipe=Recipe(
        optimizer="sgd",
        learning_rate=0.03,
        momentum=0.9,
        epochs=150,
        batch_size=32,
        weight_decay=3e-2,
        schedule="cosine",
        seeds=(0, 1, 2, 3, 4),
    ),
    data=diabetes,
    dampings=(3e-3, 1e-2, 2e-2, 3e-2, 1e-1),
)
