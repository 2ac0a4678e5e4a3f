"""Laws of every executor, run on real processes and a real Dask cluster."""

import hashlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from patience import HANG_SECONDS, wait_until

from streamfluence import errors
from streamfluence.collecting.units import collect
from streamfluence.evaluation.truth.units import retrain
from streamfluence.executors.base import WorkerDied
from streamfluence.registry import member, names
from streamfluence.sketching import units
from streamfluence.sketching.coverage import coverage
from streamfluence.sketching.decide import decide

HERE = str(Path(__file__).parent)
EXECUTORS = names("executors")
OPTIONS = {"serial": {}}
OUR_ERRORS = [name for name in vars(errors) if not name.startswith("_")]
SEVERAL = [name for name in EXECUTORS if name != "serial"]


class Awkward(Exception):
    """An error that pickles but cannot be made again."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def product_digest(seed, size):
    """A digest of the bits of a product large enough for torch to share among threads."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(size, size, generator=generator)
    sums = (left @ left.T).sum(0), torch.get_num_threads()
    return hashlib.sha256(sums[0].numpy().tobytes()).hexdigest(), sums[1]


def square(number):
    return number * number


def leave_a_mark(folder, number):
    with open(Path(folder) / f"{number}", "a") as file:
        file.write("x")


def fail_on_two(number):
    if number == 2:
        raise errors.DamageError("shard 7 is torn")
    return number


def raise_named(name):
    if name == "Awkward":
        raise Awkward(1, 2)
    if name == "SystemExit":
        sys.exit("the task file left")
    if name == "unpicklable":
        raise ValueError("holds a lambda", lambda: None)
    raise getattr(errors, name)(f"message of {name}")


def misbehave(folder, how):
    if how == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exits":
        os._exit(3)
    if how == "exits once" and not Path(folder, how).exists():
        Path(folder, how).touch()
        os._exit(1)
    return how


def process_id(folder, number):
    """Return this process's number once two processes have begun a task."""
    Path(folder, str(os.getpid())).touch()
    wait_until(lambda: len(os.listdir(folder)) >= 2)
    return os.getpid()


def own_process_id(number):
    return os.getpid()


def environment_of(variable):
    return os.environ.get(variable)


def return_a_lambda(number):
    return lambda: number


@pytest.fixture(scope="module")
def executors():
    """One executor of each kind, each with two workers, shared by all tests."""
    opened = {}
    for name in EXECUTORS:
        opened[name] = member("executors", name)(**OPTIONS.get(name, {"workers": 2})).__enter__()
    yield opened
    for executor in opened.values():
        executor.__exit__(None, None, None)


@pytest.fixture(params=EXECUTORS)
def executor(request, executors):
    return executors[request.param]


@pytest.fixture(params=SEVERAL)
def several(request, executors):
    return executors[request.param]


def test_every_task_runs_once(executor, tmp_path):
    tasks = [(str(tmp_path), number) for number in range(17)]
    outcome = executor.run(leave_a_mark, tasks)
    assert set(outcome.results) == set(tasks) and not outcome.failures
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        str(number): "x" for number in range(17)
    }


def test_no_task_at_all_is_an_empty_outcome(executor):
    outcome = executor.run(square, [])
    assert outcome.results == {} and outcome.failures == {}


def test_done_hears_of_every_result_in_this_process(executor):
    heard = []
    executor.run(
        fail_on_two, ((n,) for n in range(5)), lambda task, result: heard.append((task, result))
    )
    assert sorted(heard) == [((n,), n) for n in range(5) if n != 2]


def test_one_failure_is_named_and_the_rest_is_kept(executor):
    outcome = executor.run(fail_on_two, [(n,) for n in range(6)])
    assert outcome.results == {(n,): n for n in range(6) if n != 2}
    assert list(outcome.failures) == [(2,)]
    assert type(outcome.failures[2,]) is errors.DamageError
    assert str(outcome.failures[2,]) == "shard 7 is torn"


def test_a_failure_brings_its_traceback_as_a_note_and_not_as_objects(executor):
    error = executor.run(fail_on_two, [(2,)]).failures[2,]
    assert "fail_on_two" in error.__notes__[0]
    assert error.__traceback__ is None and error.__context__ is None


@pytest.mark.parametrize("kind", OUR_ERRORS)
def test_every_error_of_ours_keeps_type_message_and_exit_code(several, kind):
    error = several.run(raise_named, [(kind,)]).failures[kind,]
    wanted = getattr(errors, kind)
    assert type(error) is wanted and str(error) == f"message of {kind}"
    assert error.exit_code == wanted.exit_code


@pytest.mark.parametrize(
    "kind,message",
    [
        ("Awkward", "Awkward: 1 and 2"),
        ("SystemExit", "the task file left"),
        ("unpicklable", "ValueError: .*holds a lambda"),
    ],
)
def test_errors_that_cannot_travel_keep_their_message(executor, kind, message):
    error = executor.run(raise_named, [(kind,)]).failures[kind,]
    assert isinstance(error, Awkward | RuntimeError | SystemExit)
    assert re.search(message, f"{type(error).__name__}: {error}")


def test_a_result_that_cannot_travel_fails_its_task_alone(several):
    outcome = several.run(return_a_lambda, [(1,)])
    assert list(outcome.failures) == [(1,)] or callable(outcome.results[1,])
    assert several.run(square, [(3,)]).results == {(3,): 9}


def test_every_executor_gives_the_bits_of_the_serial_one(executors):
    tasks = [(seed, 300) for seed in range(4)]
    wanted = executors["serial"].run(product_digest, tasks).results
    assert len(wanted) == 4
    for name in SEVERAL:
        assert executors[name].run(product_digest, tasks).results == wanted


@pytest.mark.parametrize("threads", [1, 2])
def test_a_task_has_the_asked_number_of_threads_and_torch_gets_its_own_back(threads):
    torch.set_num_threads(3 - threads)
    try:
        serial = member("executors", "serial")(threads=threads)
        assert serial.run(product_digest, [(0, 8)]).results[0, 8][1] == threads
        assert torch.get_num_threads() == 3 - threads
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("name", ["processes", "dask"])
def test_the_environment_of_the_caller_is_as_before_once_the_work_is_done(name, monkeypatch):
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    own = member("executors", name)(workers=1)
    assert own.run(environment_of, [("MKL_NUM_THREADS",)]).results[("MKL_NUM_THREADS",)] == "1"
    assert "PYTHONSAFEPATH" not in os.environ and os.environ["MKL_NUM_THREADS"] == "3"


def test_a_worker_starts_with_its_threads_in_the_environment(several, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert several.run(environment_of, [("OMP_NUM_THREADS",)]).results == {
        ("OMP_NUM_THREADS",): "1"
    }
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_tasks_run_outside_this_process_and_on_both_workers(several, tmp_path):
    tasks = [(str(tmp_path), n) for n in range(8)]
    found = set(several.run(process_id, tasks).results.values())
    assert len(found) == 2 and os.getpid() not in found


def test_tasks_are_taken_only_when_a_worker_is_free(executor):
    taken, finished = 0, 0
    most_ahead = 0

    def tasks():
        nonlocal taken, most_ahead
        for number in range(12):
            most_ahead = max(most_ahead, taken - finished)
            taken += 1
            yield (number,)

    def done(task, result):
        nonlocal finished
        finished += 1

    executor.run(square, tasks(), done)
    assert finished == 12 and most_ahead <= 4


def test_a_task_that_kills_its_worker_is_named_and_the_rest_is_kept(several, tmp_path):
    kinds = ["is fine", "is killed", "exits once", "is fine, too"]
    outcome = several.run(misbehave, [(str(tmp_path), kind) for kind in kinds])
    assert sorted(outcome.results.values()) == ["exits once", "is fine", "is fine, too"]
    assert list(outcome.failures) == [(str(tmp_path), "is killed")]
    error = outcome.failures[str(tmp_path), "is killed"]
    assert type(error) is WorkerDied and error.exit_code == 4 and "'is killed')" in str(error)
    assert (
        "killed by SIGKILL, as the system does" in str(error)
        or type(several).__name__ != "Processes"
    )


def test_how_a_process_died_is_said(executors, tmp_path):
    failures = executors["processes"].run(misbehave, [(str(tmp_path), "exits")]).failures
    assert "ended with exit code 3, 2 times" in str(failures[str(tmp_path), "exits"])


def test_an_error_of_done_ends_the_run_and_comes_out(executor):
    def done(task, result):
        raise KeyError("in done")

    with pytest.raises(KeyError, match="in done"):
        executor.run(square, [(n,) for n in range(4)], done)
    assert executor.run(square, [(5,)]).results == {(5,): 25}


def test_an_interrupted_serial_task_is_no_failure_but_an_interrupt():
    with pytest.raises(errors.Interrupted, match="message of Interrupted"):
        member("executors", "serial")().run(raise_named, [("Interrupted",)])


def test_processes_outside_a_with_block_end_with_the_run():
    outcome = member("executors", "processes")(workers=1).run(own_process_id, [(0,)])
    with pytest.raises(ProcessLookupError):
        os.kill(outcome.results[0,], 0)


def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from streamfluence.executors.processes import Processes\n"
        "import operator\nProcesses(workers=1).run(operator.neg, [(1,)])\n"
    )
    ended = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env=child_environment(),
        timeout=HANG_SECONDS,
    )
    assert ended.returncode == 1 and 'needs `if __name__ == "__main__":`' in ended.stderr


def child_environment():
    path = os.pathsep.join([HERE, str(Path(HERE).parent), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


@pytest.fixture
def scheduler(tmp_path):
    """Address and processes of a scheduler with one worker, as a user would start them."""
    file = tmp_path / "scheduler.json"
    options = ["--scheduler-file", str(file), "--host", "127.0.0.1", "--no-dashboard"]
    commands = (["scheduler", "--port", "0"], ["worker", "--nworkers", "1", "--nthreads", "2"])
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "dask", *command, *options],
            env=child_environment(),
            stderr=subprocess.DEVNULL,
        )
        for command in commands
    ]
    yield file, processes
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait(HANG_SECONDS)


@pytest.mark.slow
def test_dask_runs_on_a_scheduler_that_is_already_there_and_says_when_it_is_lost(
    scheduler, executors
):
    file, (server, _) = scheduler
    address = wait_for_address(file)
    tasks = [(seed, 200) for seed in range(3)]
    with member("executors", "dask")(address=address) as executor:
        assert (
            executor.run(product_digest, tasks).results
            == executors["serial"].run(product_digest, tasks).results
        )

        def lose_the_scheduler(task, result):
            server.kill()
            server.wait()

        with pytest.raises(errors.StorageError, match="lost the Dask scheduler"):
            executor.run(square, [(n,) for n in range(9)], lose_the_scheduler)


def wait_for_address(file):
    wait_until(lambda: file.exists() and file.read_text().rstrip().endswith("}"))
    return json.loads(file.read_text())["address"]


def test_no_scheduler_at_the_address_is_an_input_error(monkeypatch):
    monkeypatch.setattr("streamfluence.executors.dask._CONNECT_SECONDS", 0.3)
    with pytest.raises(
        errors.InputError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"
    ):
        member("executors", "dask")(address="tcp://127.0.0.1:9").run(square, [(1,)])


def test_our_own_dask_cluster_listens_on_loopback_only_and_never_times_out_a_worker(executors):
    scheduler = executors["dask"]._cluster.scheduler
    assert scheduler.address.startswith("tcp://127.0.0.1:")
    assert scheduler.worker_ttl is None
    assert all(
        worker.address.startswith("tcp://127.0.0.1:") for worker in scheduler.workers.values()
    )


@pytest.mark.parametrize(
    "unit",
    [
        *(units.squares, units.scales, units.fit, units.basis, units.refine, units.choose),
        *(units.gram, coverage, decide, collect, retrain),
    ],
)
def test_another_process_finds_a_unit_of_work_by_its_name(unit):
    assert pickle.loads(pickle.dumps(unit)) is unit
