"""Case (e2): the MLP of case (a) under AdamW without weight decay."""

from cases._digits import digits
from cases.base import Case, Recipe

CASE = Case(
    key="e2",
    name="digits_adamw",
    title="MLP on digits, AdamW without weight decay",
    recipe=Recipe(optimizer="adamw", learning_rate=2e-3, steps=600, batch_size=64, seeds=(0, 1, 2)),
    data=digits,
    task_name="digits_mlp",
)
