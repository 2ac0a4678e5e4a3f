"""Case (b): a convolutional net on digits, Adam with weight decay."""

from cases._digits import digits
from cases.base import Case, Recipe

CASE = Case(
    key="b",
    name="digits_conv",
    title="convolutional net on digits, Adam with weight decay",
    recipe=Recipe(
        learning_rate=1e-3,
        epochs=60,
        batch_size=64,
        weight_decay=1e-3,
        n_subsets=60,
        seeds=(0, 1, 2),
    ),
    data=digits,
    dampings=(1e-3, 3e-3, 1e-2, 3e-2),
    models_at_once=10,
)
