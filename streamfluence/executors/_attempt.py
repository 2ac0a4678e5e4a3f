"""Run one task anywhere: with a fixed number of threads, and with failures that can travel.

Threads decide how a matrix product is cut and so its last bits; every executor
runs every task through ``attempt``, and so gives the same bits.
"""

import os
import pickle
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from streamfluence.executors.base import Task

SAFE_PATH = "PYTHONSAFEPATH"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def attempt(function: Callable[..., Any], task: Task, threads: int) -> tuple[bool, Any]:
    """Return ``(True, function(*task))``, or ``(False, error)`` if it raised."""
    with torch_threads(threads):
        try:
            return True, function(*task)
        except (Exception, SystemExit) as error:
            return False, portable(error)


def portable(error: BaseException) -> BaseException:
    """Return a copy of ``error`` that pickles, of the same type and message where that can be.

    The traceback becomes a note: as an object it would keep the task's tensors alive.
    """
    trace = "".join(traceback.format_exception(error))
    copy = _pickled_copy(error) or RuntimeError(f"{type(error).__name__}: {error}")
    copy.add_note(f"in a task:\n{trace}")
    copy.__cause__ = copy.__context__ = None  # distributed makes pickle keep these, and tracebacks
    return copy.with_traceback(None)


def starting_environment(threads: int) -> dict[str, str]:
    """Return the environment that a process starts with.

    It limits threads, and keeps the process from importing what lies in the working folder, which
    is no part of the program.
    """
    return {**dict.fromkeys(_THREAD_VARIABLES, str(threads)), SAFE_PATH: "1"}


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for a while: child processes that start meanwhile inherit them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let torch use this many threads in this thread for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def default_workers(threads: int) -> int:
    """Return how many workers of so many threads the CPUs of this process hold, at least one."""
    return max(1, len(os.sched_getaffinity(0)) // threads)


def _pickled_copy(error: BaseException) -> BaseException | None:
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # an error's own __init__ or __reduce__ may raise anything
        return None
    return copy if type(copy) is type(error) and str(copy) == str(error) else None
