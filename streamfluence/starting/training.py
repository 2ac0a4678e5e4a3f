"""How a model was trained, as far as the files beside it say so and can be read without running them."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from streamfluence.data._files import natural_key
from streamfluence.starting.saved_model import json_of

_STATE, _ARGUMENTS = "trainer_state.json", "training_args.bin"


@dataclass(frozen=True)
class Found:
    """One number of a training: a key of ``[curvature]``, its value, and where it is from."""

    key: str
    value: float | int
    source: str


def training_of(folder: Path) -> tuple[list[Found], list[str]]:
    """Return what is known of a training, and what is not, each as a line to be read.

    ``training_args.bin`` is a pickle and would run code, so it is not opened.
    """
    state = _newest_state(folder)
    found = [] if state is None else list(_of_state(state))
    lacking = {"learning_rate", "steps", "weight_decay", "optimizer", "batch_size"}
    lacking -= {each.key for each in found}
    notes = [f"not found: {', '.join(sorted(lacking))}; give those of your training"]
    if found:
        notes.append("uncomment what was found when you give the optimizer, or it means plain SGD")
    if any(folder.glob(f"**/{_ARGUMENTS}")):
        notes.append(f"{_ARGUMENTS} was not read: it is a pickle, which may run code")
    return found, notes


def _newest_state(folder: Path) -> Path | None:
    """Return the state of the Trainer: of the folder itself, else of its last checkpoint."""
    if (folder / _STATE).is_file():
        return folder / _STATE
    states = folder.glob(f"checkpoint-*/{_STATE}")
    return max(states, key=lambda path: natural_key(path.parent.name), default=None)


def _of_state(path: Path) -> Iterator[Found]:
    state = json_of(path)
    steps = _number(state.get("global_step"))
    if steps > 0:
        yield Found("steps", int(steps), f"global_step of {path.name}")
    rates = [_number(each.get("learning_rate")) for each in state.get("log_history") or []]
    rates = [rate for rate in rates if rate > 0]
    if rates:
        mean = float(f"{sum(rates) / len(rates):.6g}")
        yield Found("learning_rate", mean, f"mean of {len(rates)} in {path.name}")


def _number(value: Any) -> float:
    """Return a finite number, 0 for anything else."""
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if numeric and isfinite(value) else 0.0
