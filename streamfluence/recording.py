"""Record a training while it runs: what methods that follow its steps need, written beside the loop.

Steps are copied when they are taken and written by a thread of their own. Files are written aside,
flushed and renamed; see ``recorded`` for what lies where.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

import torch
from torch import Tensor, nn

from streamfluence.errors import InputError, StorageError
from streamfluence.new_file import failed, new_file
from streamfluence.recorded import (
    FINAL,
    FORMAT,
    HEADER,
    STEPS,
    Group,
    moments_path,
    weights_path,
)


def record(
    folder: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    every: int = 1,
    moments: bool = False,
    reduction: Literal["mean", "sum"] = "mean",
) -> "Recording":
    """Return a context in which every step of an optimizer is recorded.

    ``with record("record", model, optimizer) as recording:`` goes around the loop, and
    ``recording.batch(rows)`` into it, once for every batch, before ``optimizer.step()``. At the
    end ``record/final.pt`` holds the weights, which a job names as its checkpoint.

    Args:
        folder: Where to write; it must not hold a record yet.
        model: Whose ``state_dict`` is written. What was compiled or wrapped is given as it was before.
        every: Weights are written before every so many steps. Methods take the last ones written for
            the steps between, so a larger number costs less and says less.
        moments: Write the optimizer's state as well.
        reduction: Whether the loss that is stepped down is the mean of the examples' losses or their sum.

    Raises:
        InputError: If there is a record already, or the optimizer has weights that the model has not.
        StorageError: If the folder cannot be written, there or at a later step.
    """
    return Recording(Path(folder), model, optimizer, every, moments, reduction)


class Recording:
    """A training that is being recorded; see ``record``."""

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        every: int,
        moments: bool,
        reduction: str,
    ) -> None:
        if every < 1:
            raise InputError(f"every = {every}; it must be at least 1")
        if reduction not in ("mean", "sum"):
            raise InputError(f"reduction = {reduction!r}; it must be 'mean' or 'sum'")
        self._folder, self._model, self._optimizer = folder, model, optimizer
        self._every, self._moments = every, moments
        self._header = {
            "format": FORMAT,
            "optimizer": type(optimizer).__name__,
            "parameters": _names(model, optimizer),
            "reduction": reduction,
            "maximize": any(group.get("maximize", False) for group in optimizer.param_groups),
        }
        self._examples: list[int | str] = []
        self._number, self._inside = 0, False
        self._before: dict[str, Any] = {}
        self._jobs: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        _write_header(self._folder, self._header)
        self._lines = _opened(self._folder / STEPS)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="record")
        self._hooks = (
            self._optimizer.register_step_pre_hook(self._begin),
            self._optimizer.register_step_post_hook(self._end),
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        try:
            if not self._inside:  # else the weights are neither those before a step nor after it
                self._submit(_finish, self._lines, self._folder, _copied(self._model.state_dict()))
            self._wait()
        finally:
            self._writer.shutdown()
            self._lines.close()

    def batch(self, examples: Iterable[int | str] | Tensor) -> None:
        """Say which examples are in the next step; of several batches before a step, all are.

        Args:
            examples: Rows of the training set, counted from 0, or, as strings, the ids its reader has.
        """
        given = examples.tolist() if isinstance(examples, Tensor) else list(examples)
        self._examples += [each if isinstance(each, str) else int(each) for each in given]

    def _begin(self, *_: Any) -> None:
        if not self._examples:
            raise InputError(
                "a step was taken before recording.batch(rows) said which examples are in it; call it for "
                "every batch, before optimizer.step()"
            )
        self._inside, self._before = True, {}
        if self._number % self._every == 0:
            self._wait()  # one copy waits to be written at most
            self._before["weights"] = _copied(self._model.state_dict())
            if self._moments:
                self._before["moments"] = _copied(self._optimizer.state_dict())

    def _end(self, *_: Any) -> None:
        line = {
            "step": self._number,
            "examples": self._examples,
            "groups": _groups(self._optimizer),
        }
        self._submit(_write_step, self._lines, self._folder, line, self._before)
        self._examples, self._before = [], {}
        self._number, self._inside = self._number + 1, False

    def _submit(self, function: Any, *given: Any) -> None:
        while self._jobs and self._jobs[0].done():
            self._jobs.popleft().result()
        self._jobs.append(self._writer.submit(function, *given))

    def _wait(self) -> None:
        while self._jobs:
            self._jobs.popleft().result()


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """Return the names of an optimizer's weights, by group."""
    names = {id(weight): name for name, weight in model.named_parameters()}
    groups = [group["params"] for group in optimizer.param_groups]
    if any(id(weight) not in names for group in groups for weight in group):
        raise InputError(
            "the optimizer moves weights that are none of the model's; give record the model that it "
            "was made of"
        )
    return [[names[id(weight)] for weight in group] for group in groups]


def _groups(optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
    return [
        vars(
            Group(
                float(group["lr"]),
                float(group.get("weight_decay", 0.0)),
                float(group.get("momentum", 0.0)),
            )
        )
        for group in optimizer.param_groups
    ]


def _copied(state: Any) -> Any:
    """Return a copy on the host that training does not touch."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_copied(value) for value in state)
    return deepcopy(state)


def _write_header(folder: Path, header: Mapping[str, Any]) -> None:
    try:
        for path in (folder, folder / "weights", folder / "moments"):
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise failed(folder, error) from error
    with new_file(folder / HEADER) as temporary:
        temporary.write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("xb")
    except OSError as error:
        raise failed(path, error) from error


def _write_step(
    lines: BinaryIO, folder: Path, line: Mapping[str, Any], before: Mapping[str, Any]
) -> None:
    """Write what was copied before a step, and then that it was taken."""
    said = dict(line)
    if "moments" in before:
        _save(before["moments"], moments_path(folder, line["step"]))
    if "weights" in before:
        said["weights"] = _save(before["weights"], weights_path(folder, line["step"]))
    _append(lines, said)


def _finish(lines: BinaryIO, folder: Path, weights: Any) -> None:
    _append(lines, {"end": _save(weights, folder / FINAL)})


def _append(lines: BinaryIO, said: Mapping[str, Any]) -> None:
    try:
        lines.write(json.dumps(said).encode() + b"\n")
        lines.flush()
    except OSError as error:
        raise StorageError(f"cannot write {STEPS}: {error.strerror or error}") from error


def _save(state: Any, path: Path) -> str:
    """Write tensors that ``torch.load(weights_only=True)`` reads; return the sha256 of the file."""
    with new_file(path) as temporary:
        torch.save(state, temporary)
        with temporary.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
