"""Run tasks in processes of this machine.

Our own pool, because ``concurrent.futures`` gives up every running task when
one process dies, and cannot say which task that process had.
"""

import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import wait
from typing import Any

from streamfluence.executors._attempt import default_workers
from streamfluence.executors._queue import TaskQueue
from streamfluence.executors._worker import Worker
from streamfluence.executors.base import Executor, Outcome, Task, WorkerDied

EXTRA_TRIES = 1
_STARTS = 3  # processes in a row that may die before they take a task
_GRACE_SECONDS = 3.0


class Processes(Executor):
    """One task at a time in each of some spawned processes.

    A process that dies costs only its own task, which is tried once more in a new
    process after all others. In a ``with`` block the processes stay for the next ``run``;
    otherwise they end with it. An interrupt ends them within seconds.

    Args:
        workers: Number of processes; None takes as many as the CPUs allow.
        threads: Of torch, in each.
    """

    def __init__(self, workers: int | None = None, threads: int = 1) -> None:
        self.workers = workers or default_workers(threads)
        self.threads = threads
        self._pool: list[Worker] = []
        self._kept = False
        self._failed_starts = 0

    def run(
        self,
        function: Callable[..., Any],
        tasks: Iterable[Task],
        done: Callable[[Task, Any], None] = lambda task, result: None,
    ) -> Outcome:
        outcome = Outcome()
        queue = TaskQueue(tasks, EXTRA_TRIES)
        try:
            while self._assign(function, queue):
                for worker in self._answering():
                    self._settle(worker, queue, outcome, done)
        except BaseException:
            self._stop(at_once=True)
            raise
        if not self._kept:
            self._stop()
        return outcome

    def __enter__(self) -> "Processes":
        self._kept = True
        return self

    def __exit__(self, *error: Any) -> None:
        self._kept = False
        self._stop(at_once=error[:1] != (None,))

    def _assign(self, function: Callable[..., Any], queue: TaskQueue) -> bool:
        """Give every free process a task, starting processes as needed; False when all is done."""
        while sum(worker.task is not None for worker in self._pool) < self.workers:
            task = queue.take()
            if task is None:
                break
            self._free_worker().send(function, task)
        return any(worker.task is not None for worker in self._pool)

    def _free_worker(self) -> Worker:
        for worker in self._pool:
            if worker.task is None:
                return worker
        self._pool.append(Worker(self.threads))
        return self._pool[-1]

    def _answering(self) -> list[Worker]:
        """Wait, and return the processes that have an answer or died."""
        ready = wait([worker.connection for worker in self._pool])
        return [worker for worker in self._pool if worker.connection in ready]

    def _settle(
        self, worker: Worker, queue: TaskQueue, outcome: Outcome, done: Callable[[Task, Any], None]
    ) -> None:
        """Take one answer, if the process did not die instead."""
        try:
            answer = worker.receive()
        except EOFError:
            self._bury(worker, queue, outcome)
            return
        if answer is None:
            self._failed_starts = 0
            return
        task, worker.task = worker.task, None
        assert task is not None, "an answer without a task"
        if answer[0]:
            outcome.results[task] = answer[1]
            done(task, answer[1])
        else:
            outcome.failures[task] = answer[1]

    def _bury(self, worker: Worker, queue: TaskQueue, outcome: Outcome) -> None:
        """Take a process that died out of the pool, and see to its task."""
        self._pool.remove(worker)
        task, how = worker.task, worker.end()
        if not worker.ready:
            self._check_start(worker, how)
        if task is None:
            return
        if not worker.ready:
            queue.put_back(task)
        elif error := queue.died(task, how):
            outcome.failures[task] = error

    def _check_start(self, worker: Worker, how: str) -> None:
        """Refuse to go on starting processes that end before they take a task."""
        self._failed_starts += 1
        if worker.failed or self._failed_starts >= _STARTS:
            raise WorkerDied(
                f"a worker process {how} before it took a task; its own output says why; a script that "
                'starts processes needs `if __name__ == "__main__":` around its work'
            )

    def _stop(self, at_once: bool = False) -> None:
        pool, self._pool = self._pool, []
        for worker in pool:
            if at_once:
                worker.terminate()
            else:
                worker.dismiss()
        deadline = time.monotonic() + _GRACE_SECONDS
        for worker in pool:
            worker.kill(max(0.0, deadline - time.monotonic()))
