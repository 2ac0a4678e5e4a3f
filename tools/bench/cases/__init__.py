"""The nets of the fidelity benchmark; a module a case, a task file beside it."""

import importlib

from cases.base import Case

NAMES = {
    "a": "digits_mlp",
    "b": "digits_conv",
    "c": "code_transformer",
    "d": "diabetes_mlp",
    "e1": "digits_momentum",
    "e2": "digits_adamw",
    "f": "letters_mlp",
    "g": "digits_large",
}


def load_case(key: str) -> Case:
    """Return the case called ``key``, one of ``NAMES``."""
    return importlib.import_module(f"cases.{NAMES[key]}").CASE
