"""States of the sketch: named tensors with facts, committed as one partition of a stage."""

from typing import Any

import torch

from streamfluence.linalg import State
from streamfluence.run.opened import OpenRun
from streamfluence.run.rests_on import refuse_other_data, set_digest


def save_state(
    run: OpenRun,
    stage: str,
    partition: int,
    state: State,
    facts: dict[str, Any],
    rests_on: dict[str, str] | None = None,
) -> None:
    """Commit a state with its facts as attributes.

    Args:
        rests_on: Digests of what it was made from beside the training set, for its receipt.
    """
    arrays = {key: value.cpu().numpy() for key, value in state.items()}
    bases = {**(rests_on or {}), "set": set_digest(run, "train")}
    run.commit(stage, partition, arrays, {"facts": facts}, bases)


def load_state(
    run: OpenRun, stage: str, partition: int, under: str = ""
) -> tuple[State, dict[str, Any]]:
    """Return a committed state, verified, and its facts.

    Args:
        under: Only the entries whose names begin like this are read.

    Raises:
        DamageError: If it is damaged, or was made from another training set.
    """
    receipt = run.receipt(stage, partition)
    assert receipt is not None, f"{stage} is not there: its step runs before this one"
    refuse_other_data(run, receipt)
    names = [name for name in run.array_names(receipt) if name.startswith(under)]
    state = {name: torch.from_numpy(run.read(receipt, name)) for name in names}
    return state, run.read_attributes(receipt)["facts"]


def select(state: State, prefix: str) -> State:
    """Return the entries under ``prefix/``, without it."""
    cut = len(prefix) + 1
    return {key[cut:]: value for key, value in state.items() if key.startswith(prefix + "/")}
