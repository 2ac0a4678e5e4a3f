"""One worker process: it answers one task at a time and ends with its parent.

Spawned and not forked: a fork after Zarr or torch was used may deadlock.
"""

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from streamfluence.executors._attempt import (
    SAFE_PATH,
    attempt,
    environment,
    portable,
    starting_environment,
)
from streamfluence.executors.base import Task

_STOP = b""
_READY = b"ready"


class Worker:
    """A spawned process and the one task it works on.

    Attributes:
        task: What it works on, or None.
        ready: Whether it got as far as taking a task.
        failed: Once it ended, whether a Python exception ended it.
        connection: Becomes readable when there is an answer, or when the process died.
    """

    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        asked = SAFE_PATH in os.environ
        self.task: Task | None = None
        self.ready = self.failed = False
        self.connection, theirs = context.Pipe()
        # Daemonic, so that even an interrupt right here leaves no process that is waited for.
        self._process = context.Process(target=_serve, args=(theirs, threads, asked), daemon=True)
        with environment(starting_environment(threads)), _interrupts_held_back():
            self._process.start()
        theirs.close()  # else its end would never be seen

    def send(self, function: Callable[..., Any], task: Task) -> None:
        """Hand over a task; raises what pickling it raises."""
        message = pickle.dumps((function, task))
        self.task = task
        with suppress(BrokenPipeError):  # it died since; ``receive`` says so
            self.connection.send_bytes(message)

    def receive(self) -> tuple[bool, Any] | None:
        """Return the answer as ``attempt`` does, or None when there is none yet.

        Raises:
            EOFError: If the process died.
        """
        try:
            message = self.connection.recv_bytes()
        except OSError as error:  # it died while it was sending
            raise EOFError from error
        if message == _READY:
            self.ready = True
            return None
        try:
            answer: tuple[bool, Any] = pickle.loads(message)
            return answer
        except Exception as error:  # what it sent cannot be made again here
            return False, portable(error)

    def end(self) -> str:
        """Return how the process, which is dying, ended."""
        self._process.join(5)
        code = self._process.exitcode
        self.failed = code == 1
        self.kill()
        if code is None or code >= 0:
            return f"ended with exit code {code}"
        likely = ", as the system does when memory is full" if -code == signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{likely}"

    def dismiss(self) -> None:
        """Let an idle process end by itself."""
        with suppress(BrokenPipeError):
            self.connection.send_bytes(_STOP)

    def terminate(self) -> None:
        """Tell the process to stop now; commits are safe from that at any instant."""
        self._process.terminate()

    def kill(self, grace: float = 0.0) -> None:
        """Wait ``grace`` seconds for the process to end, then end it."""
        self._process.join(grace)
        self._process.kill()
        self._process.join()
        self._process.close()
        self.connection.close()


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Start a process deaf to Ctrl-C, which else ends its first imports with a traceback.

    A process inherits what its parent holds back. Here the signal is only late.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, threads: int, safe_path: bool) -> None:
    if not safe_path:  # what the user's code starts is the user's
        os.environ.pop(SAFE_PATH, None)
    # Ctrl-C reaches every process of a terminal; what happens then is the parent's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    connection.send_bytes(_READY)
    while (message := connection.recv_bytes()) != _STOP:
        connection.send_bytes(_answer(message, threads))


def _answer(message: bytes, threads: int) -> bytes:
    try:
        function, task = pickle.loads(message)
        answer = attempt(function, task, threads)
        return pickle.dumps(answer)
    except Exception as error:  # the function cannot be imported here, or the result not be pickled
        return pickle.dumps((False, portable(error)))


def _end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
