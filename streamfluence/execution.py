"""How a stage's tasks are run: which executor, how many workers, on which device.

None of this decides a number, except the threads of one worker, which the manifest pins.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any, Protocol

import torch

from streamfluence.errors import InputError, StreamfluenceError
from streamfluence.executors.base import Executor, Task
from streamfluence.registry import member, names

_root: ContextVar[Path | None] = ContextVar("root", default=None)


@contextmanager
def mounted(root: str | Path | None) -> Iterator[None]:
    """Have relative paths of runs resolve against this folder, here and in every task.

    Not against the one that their place names; None leaves it at what is so already.
    """
    token = _root.set(Path(root).resolve() if root is not None else _root.get())
    try:
        yield
    finally:
        _root.reset(token)


def mounted_root() -> Path | None:
    """Return the folder that runs are seen from instead of that of their place, if there is one."""
    return _root.get()


class Progress(Protocol):
    """What a stage tells whoever watches."""

    def start(self, stage: str, total: int, unit: str) -> None: ...
    def advance(self, amount: int) -> None: ...
    def message(self, text: str) -> None: ...
    def finish(self) -> None: ...


class Silent:
    """Tells nobody."""

    def start(self, stage: str, total: int, unit: str) -> None: ...
    def advance(self, amount: int) -> None: ...
    def message(self, text: str) -> None: ...
    def finish(self) -> None: ...


@dataclass(frozen=True)
class Execution:
    """Where and how tasks run.

    Attributes:
        executor: Member of the family ``executors``.
        workers: Processes, or ``auto``: as many as the CPUs hold with their threads, or one for all of
            a CUDA device.
        dask: Address of a running scheduler.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        memory: Bytes one worker may use, or None.
    """

    executor: str = "processes"
    workers: int | str = "auto"
    dask: str | None = None
    device: str = "auto"
    memory: int | None = None

    def check(self) -> None:
        """Refuse an executor or a device that is not there, before any work.

        Raises:
            InputError: If there is no such executor, or CUDA is asked for where there is none.
        """
        if self.executor not in names("executors"):
            raise InputError(
                f"there is no executor {self.executor!r}; use one of {', '.join(names('executors'))}"
            )
        self.resolved_device()

    def resolved_device(self) -> str:
        """Return the torch device to use.

        Raises:
            InputError: If CUDA is asked for where there is none.
        """
        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise InputError(
                f"device {self.device!r} is no torch device; use cpu or cuda"
            ) from error
        if device.type not in ("cpu", "cuda"):
            raise InputError(f"device {self.device!r} is not supported; use cpu or cuda")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise InputError(
                f"device {self.device!r} was asked for, but torch sees no CUDA device here"
            )
        return self.device

    def worker_count(self, tasks: int, threads: int) -> int:
        """Return how many processes to start for this many tasks, each of so many threads."""
        if self.workers != "auto":
            return int(self.workers)
        if self.resolved_device() != "cpu":
            return 1
        return max(1, min(len(os.sched_getaffinity(0)) // threads, tasks))

    def open(self, tasks: int, threads: int) -> Executor:
        """Return the executor for a stage of ``tasks`` tasks; use it as a context manager."""
        name, workers = self.executor, self.worker_count(tasks, threads)
        given: dict[str, Any] = {"workers": workers}
        if self.dask or name == "dask":
            name, given = "dask", {**given, "address": self.dask, "memory": self.memory}
        elif name == "serial" or (workers == 1 and name == "processes"):
            name, given = "serial", {}
        opened: Executor = member("executors", name)(threads=threads, **given)
        return opened


def run_all(
    executor: Executor,
    function: Callable[..., Any],
    tasks: Iterable[Task],
    done: Callable[[Task, Any], None] = lambda task, result: None,
) -> list[Any]:
    """Run every task and return the results in order; raise the first failure once all have ended.

    What succeeded is committed by then, so a repeated command goes on from there.
    """
    tasks = list(tasks)
    everywhere = update_wrapper(partial(_mounted, mounted_root(), function), function)
    outcome = executor.run(everywhere, tasks, done)
    if outcome.failures:
        error = min(outcome.failures.items(), key=lambda item: tasks.index(item[0]))[1]
        rest = (
            f" (and {len(outcome.failures) - 1} more tasks failed)"
            if len(outcome.failures) > 1
            else ""
        )
        if isinstance(error, StreamfluenceError):
            raise type(error)(f"{error}{rest}") from error
        raise error
    return [outcome.results[task] for task in tasks]


def _mounted(root: Path | None, function: Callable[..., Any], *task: Any) -> Any:
    """Run one task, in whatever process, as if it were done where it was asked for."""
    with mounted(root):
        return function(*task)
