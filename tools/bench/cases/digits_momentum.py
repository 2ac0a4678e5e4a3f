"""Case (e1): the MLP of case (a) under SGD with momentum, no weight decay, stopped early."""

from cases._digits import digits
from cases.base import Case, Recipe

RECIPE = Recipe(
    optimizer="sgd", learning_rate=0.05, momentum=0.9, steps=400, batch_size=64, seeds=(0, 1, 2)
)

CASE = Case(
    key="e1",
    name="digits_momentum",
    title="MLP on digits, SGD with momentum, stopped early",
    recipe=RECIPE,
    data=digits,
    task_name="digits_mlp",
)
