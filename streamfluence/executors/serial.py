"""Run tasks one after the other, in this process."""

from collections.abc import Callable, Iterable
from typing import Any

from streamfluence.errors import Interrupted
from streamfluence.executors._attempt import attempt
from streamfluence.executors.base import Executor, Outcome, Task


class Serial(Executor):
    """One task at a time in this process, with as many threads as a worker would have.

    Args:
        threads: Of torch, while a task runs.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    def run(
        self,
        function: Callable[..., Any],
        tasks: Iterable[Task],
        done: Callable[[Task, Any], None] = lambda task, result: None,
    ) -> Outcome:
        outcome = Outcome()
        for task in tasks:
            worked, result = attempt(function, task, self.threads)
            if worked:
                outcome.results[task] = result
                done(task, result)
            elif isinstance(result, Interrupted):
                raise result  # it is this process that was told to stop, not this task
            else:
                outcome.failures[task] = result
        return outcome
