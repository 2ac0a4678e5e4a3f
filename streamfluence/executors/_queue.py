"""Tasks not yet answered, and how often each one's worker died."""

from collections import deque
from collections.abc import Iterable, Iterator

from streamfluence.executors.base import Task, WorkerDied


class TaskQueue:
    """Hands out tasks: those never tried first, then those whose worker died.

    The others go first because a death is often for lack of memory, which may pass.

    Args:
        tasks: Taken one by one, when there is somebody to run them.
        extra_tries: Of a task whose worker died; the death may have been a neighbour's doing.
    """

    def __init__(self, tasks: Iterable[Task], extra_tries: int) -> None:
        self._fresh: Iterator[Task] = iter(tasks)
        self._again: deque[Task] = deque()
        self._extra_tries = extra_tries
        self._deaths: dict[Task, int] = {}

    def take(self) -> Task | None:
        """Return the next task, or None when none waits."""
        task = next(self._fresh, None)
        if task is None and self._again:
            return self._again.popleft()
        return task

    def put_back(self, task: Task) -> None:
        """Let ``task`` be tried again, as if it had not been."""
        self._again.append(task)

    def died(self, task: Task, how: str) -> WorkerDied | None:
        """Put back a task whose worker died, or return the error when it is given up."""
        self._deaths[task] = self._deaths.get(task, 0) + 1
        if self._deaths[task] <= self._extra_tries:
            self.put_back(task)
            return None
        return WorkerDied(
            f"task {task}: its worker {how}, {self._deaths[task]} times; the other tasks went on; "
            "if memory is short, use fewer workers or a smaller batch"
        )
