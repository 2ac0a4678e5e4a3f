"""A recorded training as it lies in a folder: of every step its examples, rate and weights.

    record.json              what was trained: optimizer, names of its weights, how losses were joined
    steps.jsonl              one line a finished step, and one at the end
    weights/00000010.pt      a state_dict before step 10, the first being 0; ``final.pt`` after the last
    moments/00000010.pt      the optimizer's state_dict then, where it was asked for

A line is there once its step is done and what it names is on disk, so that a training that is
killed leaves a record of the steps before; half a line at the end is none.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from streamfluence.errors import DamageError, InputError

FORMAT = 1
HEADER, STEPS, FINAL = "record.json", "steps.jsonl", "final.pt"


@dataclass(frozen=True)
class Group:
    """A group of the optimizer at one step: learning rate, weight decay and momentum."""

    rate: float
    decay: float
    momentum: float


@dataclass(frozen=True)
class Step:
    """A step that was taken.

    Attributes:
        examples: Rows of the training set, or the ids that its reader gives them.
        groups: Of the optimizer.
        weights: The step before which the weights were last written, this one or an earlier.
    """

    examples: tuple[int | str, ...]
    groups: tuple[Group, ...]
    weights: int


@dataclass(frozen=True)
class Recorded:
    """A training as it was recorded.

    Attributes:
        optimizer: Name of its class.
        parameters: Names of the weights that it moves, by group.
        reduction: ``mean`` or ``sum`` over the examples of a step.
        maximize: Whether it climbs.
        steps: Those that are finished, in order.
        digests: The sha256 of what was written of the weights, by the step before which they were.
        final: That of the weights after the last step; None where training did not come to its end.
    """

    folder: Path
    optimizer: str
    parameters: tuple[tuple[str, ...], ...]
    reduction: str
    maximize: bool
    steps: tuple[Step, ...]
    digests: Mapping[int, str]
    final: str | None

    def until(self, digest: str) -> "Recorded | None":
        """Return the steps before weights of this sha256, or None if they are none of the record."""
        if digest == self.final:
            return self
        for number, known in self.digests.items():
            if known == digest:
                before = {n: each for n, each in self.digests.items() if n < number}
                return replace(self, steps=self.steps[:number], digests=before, final=digest)
        return None

    @cached_property
    def digest(self) -> str:
        """The sha256 of all of it but where it lies."""
        content = {key: value for key, value in asdict(self).items() if key != "folder"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def weights_path(folder: Path, step: int) -> Path:
    """Return where the weights before a step lie."""
    return folder / "weights" / f"{step:08d}.pt"


def moments_path(folder: Path, step: int) -> Path:
    """Return where the optimizer's state before a step lies."""
    return folder / "moments" / f"{step:08d}.pt"


def open_record(folder: Path) -> Recorded:
    """Return what a folder holds of a training; weights are not read.

    Raises:
        InputError: If there is no record, or it has no finished step, or is of another format.
        DamageError: If a line of it is not what was written.
    """
    header = _header(folder)
    lines = _lines(folder / STEPS)
    digests: dict[int, str] = {}
    steps: list[Step] = []
    final = None
    for number, line in enumerate(lines):
        try:
            if "end" in line:
                final = str(line["end"])
                continue
            steps.append(_step(line, len(steps), digests))
        except (KeyError, TypeError, ValueError) as error:
            where = f"{folder / STEPS}, line {number + 1}"
            raise DamageError(
                f"{where}, is not what was recorded ({error}); record again"
            ) from error
    if not steps:
        raise InputError(
            f"{folder} holds no finished step of training; train longer, or record again"
        )
    return Recorded(folder, **header, steps=tuple(steps), digests=digests, final=final)


def _header(folder: Path) -> dict[str, Any]:
    path = folder / HEADER
    if not path.is_file():
        raise InputError(
            f"{folder} holds no recorded training; put `with streamfluence.record(...)` around the loop "
            "that trains"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise InputError(
                f"{folder} was recorded in format {content['format']}, and this version reads {FORMAT}; "
                "record again, or use the version that wrote it"
            )
        return {
            "optimizer": str(content["optimizer"]),
            "parameters": tuple(tuple(map(str, names)) for names in content["parameters"]),
            "reduction": str(content["reduction"]),
            "maximize": bool(content["maximize"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DamageError(f"{path} is not what was recorded ({error}); record again") from error


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines; a training that is killed may leave half of the last one."""
    try:
        whole = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    try:
        return [dict(json.loads(line)) for line in whole]
    except (ValueError, TypeError) as error:
        raise DamageError(f"{path} is not what was recorded ({error}); record again") from error


def _step(line: Mapping[str, Any], number: int, digests: dict[int, str]) -> Step:
    if line["step"] != number:
        raise ValueError(f"step {line['step']} where {number} follows")
    if "weights" in line:
        digests[number] = str(line["weights"])
    if not digests:
        raise ValueError("no weights before the first step")
    groups = tuple(_group(each) for each in line["groups"])
    if not groups:
        raise ValueError("no group of the optimizer")
    return Step(tuple(map(_example, line["examples"])), groups, max(digests))


def _group(given: Mapping[str, Any]) -> Group:
    found = Group(float(given["rate"]), float(given["decay"]), float(given["momentum"]))
    if not all(map(math.isfinite, (found.rate, found.decay, found.momentum))):
        raise ValueError("a number of the optimizer is not finite")
    return found


def _example(given: Any) -> int | str:
    if isinstance(given, str) or (type(given) is int and given >= 0):
        return given
    raise ValueError(f"{given!r} is neither a row nor an id")
