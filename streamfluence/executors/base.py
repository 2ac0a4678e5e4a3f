"""Contract of an executor: run one function over many small tasks.

Laws: every task runs once; one failure is named and the others are kept;
every executor gives the same results, bit for bit on a CPU. Functions are
plain and importable, tasks are paths and integers: nothing heavy is pickled.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from streamfluence.errors import StreamfluenceError

Task = tuple[Any, ...]


class WorkerDied(StreamfluenceError):
    """The process that ran a task ended without an answer, more often than is tried again.

    Its partitions are missing, so the command that runs next takes them up again.
    """

    exit_code = 4


@dataclass
class Outcome:
    """Results and failures by task."""

    results: dict[Task, Any] = field(default_factory=dict)
    failures: dict[Task, BaseException] = field(default_factory=dict)


class Executor:
    """Base of every executor; a context manager, because some hold processes or a cluster."""

    def run(
        self,
        function: Callable[..., Any],
        tasks: Iterable[Task],
        done: Callable[[Task, Any], None] = lambda task, result: None,
    ) -> Outcome:
        """Call ``function(*task)`` for every task; ``done`` is called in this process as each finishes."""
        raise NotImplementedError

    def __enter__(self) -> "Executor":
        return self

    def __exit__(self, *error: object) -> None:
        pass
