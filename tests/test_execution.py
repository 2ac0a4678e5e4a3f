"""How many workers a stage starts."""

import os

import pytest

from streamfluence.execution import Execution
from streamfluence.registry import member


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))


@pytest.mark.parametrize(
    ("threads", "tasks", "workers"),
    [(1, 100, 8), (1, 3, 3), (2, 100, 4), (3, 100, 2), (8, 100, 1), (9, 100, 1), (100, 1, 1)],
)
def test_workers_and_their_threads_fill_the_cpus_and_no_more(threads, tasks, workers):
    assert Execution(device="cpu").worker_count(tasks, threads) == workers


def test_a_number_that_was_asked_for_is_taken():
    assert Execution(device="cpu", workers=5).worker_count(2, 4) == 5


def test_the_executor_is_opened_with_that_many_workers():
    execution = Execution(device="cpu")
    assert execution.open(100, 2).workers == 4
    assert isinstance(execution.open(100, 8), member("executors", "serial"))
