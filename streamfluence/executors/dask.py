"""Run tasks on a Dask cluster: one of our own on this machine, or a running one.

Dask only carries calls of plain functions and small results: no arrays, no
graphs, and one task in flight per thread of a worker, because Dask blames the
death of a worker also on the tasks that wait there.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from logging import CRITICAL
from queue import Empty, Queue
from typing import Any
from uuid import uuid4

import dask
from distributed import Client, Future, KilledWorker, LocalCluster

from streamfluence.errors import InputError, StorageError
from streamfluence.executors._attempt import (
    attempt,
    default_workers,
    environment,
    portable,
    starting_environment,
)
from streamfluence.executors._queue import TaskQueue
from streamfluence.executors.base import Executor, Outcome, Task

EXTRA_TRIES = 2  # one more than for processes, because a neighbour may be to blame
_CONNECT_SECONDS = 30
_LOOK_SECONDS = 5.0  # between looks at how many workers there are


class Dask(Executor):
    """Tasks on the workers of a Dask cluster.

    In a ``with`` block the cluster stays for the next ``run``; otherwise it ends with it. A task
    whose worker died is submitted again under a new key, a bounded number of times; what a
    task raises is final. An interrupt ends our own cluster within seconds; on a running
    cluster tasks that have begun go on to their end.

    Args:
        address: Of a running scheduler; its workers must be able to import the tasks' functions, and
            its ``worker-ttl`` should be null. None starts a cluster that only this machine reaches.
        workers: Processes of our own cluster; None takes as many as the CPUs allow.
        threads: Of torch, in each task.
        memory: Bytes one worker of our own cluster may use before it is killed; None sets no limit.

    Raises:
        InputError: If no scheduler answers at ``address``.
        StorageError: If the scheduler is lost while tasks run.
    """

    def __init__(
        self,
        address: str | None = None,
        workers: int | None = None,
        threads: int = 1,
        memory: int | None = None,
    ) -> None:
        self.address, self.threads, self.memory = address, threads, memory
        self.workers = workers or default_workers(threads)
        self._cluster: LocalCluster | None = None
        self._client: Client | None = None
        self._started = ExitStack()

    def run(
        self,
        function: Callable[..., Any],
        tasks: Iterable[Task],
        done: Callable[[Task, Any], None] = lambda task, result: None,
    ) -> Outcome:
        if self._client is None:
            with self:
                return self.run(function, tasks, done)
        queue, outcome = TaskQueue(tasks, EXTRA_TRIES), Outcome()
        flight = _Flight(self._client, function, self.threads, self.workers)
        try:
            while self._submit(flight, queue):
                for task, future in flight.landed():
                    self._settle(task, future, queue, outcome, done)
        finally:
            flight.cancel()
        return outcome

    def __enter__(self) -> "Dask":
        if self.address is None:
            # Dask writes what its processes start with into this one's environment, and leaves it there.
            self._started.enter_context(environment(starting_environment(self.threads)))
            with self._restored_if_it_fails():
                self._cluster = _local_cluster(self.workers, self.threads, self.memory)
        try:
            where = self._cluster or self.address
            self._client = Client(where, timeout=_CONNECT_SECONDS, set_as_default=False)
        except OSError as error:
            raise InputError(
                f"no Dask scheduler answers at {self.address} within {_CONNECT_SECONDS} s; "
                "check the address, or start one with `dask scheduler`"
            ) from error
        return self

    def __exit__(self, *error: Any) -> None:
        client, self._client = self._client, None
        cluster, self._cluster = self._cluster, None
        if client is not None:
            client.close()
        if cluster is not None:
            cluster.close()
        self._started.close()

    @contextmanager
    def _restored_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._started.close()
            raise

    def _submit(self, flight: "_Flight", queue: TaskQueue) -> bool:
        """Submit one task for every free thread of the cluster; False when all is done."""
        with self._connection():
            most = flight.room()
        while len(flight) < most and (task := queue.take()) is not None:
            with self._connection():
                flight.submit(task)
        return len(flight) > 0

    def _settle(
        self,
        task: Task,
        future: "Future[Any]",
        queue: TaskQueue,
        outcome: Outcome,
        done: Callable[[Task, Any], None],
    ) -> None:
        """Take the answer of one task that came back."""
        try:
            with self._connection():
                worked, result = future.result()
        except KilledWorker:
            if error := queue.died(task, "died"):
                outcome.failures[task] = error
            return
        except StorageError:
            raise
        except Exception as error:  # the worker cannot import the function, or not send the result
            worked, result = False, portable(error)
        if worked:
            outcome.results[task] = result
            done(task, result)
        else:
            outcome.failures[task] = result

    @contextmanager
    def _connection(self) -> Iterator[None]:
        """Say what it means when the scheduler is gone."""
        try:
            yield
        except (OSError, CancelledError) as error:
            where = self.address or "of this machine"
            raise StorageError(
                f"lost the Dask scheduler {where} ({error or type(error).__name__}); what was committed is "
                "safe; run the same command again once it is back"
            ) from error


class _Flight:
    """Tasks that were submitted and have not come back."""

    def __init__(
        self, client: Client, function: Callable[..., Any], threads: int, expected: int
    ) -> None:
        self._client, self._function, self._threads = client, function, threads
        self._expected = expected
        self._futures: dict[str, tuple[Task, Future[Any]]] = {}
        self._landed: Queue[str] = Queue()

    def __len__(self) -> int:
        return len(self._futures)

    def room(self) -> int:
        """Return how many tasks may be in flight: one a thread of the cluster."""
        # A cluster that grows on demand may have no workers before there are tasks.
        return sum(self._client.nthreads().values()) or self._expected

    def submit(self, task: Task) -> None:
        """Submit a task under a key that was never used, so that no earlier death is remembered."""
        key = f"streamfluence-{self._function.__name__}-{uuid4().hex}"
        future = self._client.submit(
            attempt, self._function, task, self._threads, key=key, pure=False, retries=0
        )
        self._futures[key] = task, future
        future.add_done_callback(lambda landed: self._landed.put(landed.key))

    def landed(self) -> list[tuple[Task, "Future[Any]"]]:
        """Wait for some task to come back and return it; nothing when none did for a while."""
        try:
            return [self._futures.pop(self._landed.get(timeout=_LOOK_SECONDS))]
        except Empty:
            return []

    def cancel(self) -> None:
        """Forget what has not come back; what a worker has begun goes on to its end."""
        futures = [future for _, future in self._futures.values()]
        if futures and self._client.status == "running":
            self._client.cancel(futures, force=True)


def _local_cluster(workers: int, threads: int, memory: int | None) -> LocalCluster:
    """Return a cluster that only this machine reaches, each worker running one task at a time."""
    spawned_with = "distributed.nanny.pre-spawn-environ"
    settings = {
        "distributed.scheduler.worker-ttl": None,  # a task may hold the GIL for longer than any limit
        "distributed.scheduler.allowed-failures": 0,  # deaths are counted by TaskQueue
        spawned_with: {**dask.config.get(spawned_with), **starting_environment(threads)},
    }
    with dask.config.set(settings):
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # None would take port 8787, which others use
            scheduler_kwargs={"dashboard": False},
            memory_limit=memory or 0,
            silence_logs=CRITICAL,
        )
