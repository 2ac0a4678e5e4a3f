"""A signal to a process that runs an executor ends it and all it started, which would go on for days."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_SECONDS, wait_until

ROOT = Path(__file__).parent.parent
SCRIPT = '''
import os, signal, sys, time
from pathlib import Path
import torch
from streamfluence.errors import Interrupted
from streamfluence.registry import member

def work(folder, number):
    """Say which process this is, then compute for ever: half of the tasks in one long C call."""
    Path(folder, str(os.getpid())).touch()
    big = torch.ones(3000, 3000)
    while True:
        time.sleep(10**6) if number % 2 else [big := big @ big for _ in range(50)]

def stop(number, frame):
    raise Interrupted("stopped")

if __name__ == "__main__":
    if sys.argv[3] == "handled":
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
    options = {} if sys.argv[1] == "serial" else {"workers": 2}
    with member("executors", sys.argv[1])(**options) as executor:
        try:
            executor.run(work, [(sys.argv[2], number) for number in range(4)])
        except Interrupted:
            sys.exit(75)
'''


def start(tmp_path, name, handled="handled"):
    script, marks = tmp_path / "script.py", tmp_path / "marks"
    script.write_text(SCRIPT)
    marks.mkdir()
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    parent = subprocess.Popen(
        [sys.executable, str(script), name, str(marks), handled],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
    )
    started = 1 if name == "serial" else 2
    wait_until(lambda: len(list(marks.iterdir())) == started, parent)
    return parent, [int(mark.name) for mark in marks.iterdir()]


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1][0] not in "ZX"
    except FileNotFoundError:
        return False


def descendants(process):
    """Every process below this one, so that helpers of multiprocessing count, too."""
    below = []
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in (task / "children").read_text().split():
            below += [int(child), *descendants(int(child))]
    return below


pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "name,number",
    [("processes", signal.SIGTERM), ("processes", signal.SIGINT), ("dask", signal.SIGTERM)],
)
def test_a_signal_to_the_parent_ends_it_and_every_child(tmp_path, name, number):
    parent, workers = start(tmp_path, name)
    started = [*workers, *descendants(parent.pid)]
    parent.send_signal(number)
    assert parent.wait(HANG_SECONDS) == 75
    wait_until(lambda: not any(alive(process) for process in started))


def test_a_signal_interrupts_a_serial_task(tmp_path):
    parent, _ = start(tmp_path, "serial")
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(HANG_SECONDS) == 75


@pytest.mark.parametrize("name", ["processes", "dask"])
def test_children_of_a_killed_parent_end_by_themselves(tmp_path, name):
    parent, workers = start(tmp_path, name, "unhandled")
    started = [*workers, *descendants(parent.pid)]
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(alive(process) for process in started))
