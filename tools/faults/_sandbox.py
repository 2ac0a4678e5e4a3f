"""Run one command in a process of its own, with limits that do not depend on how busy the machine is.

The process is forked from one that has imported everything and used nothing, so that it starts
at once. Memory is limited above what importing took, time by the processor time that it used. A
process that waits for something that never comes uses none: it is one that sleeps at every look.
"""

import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

MORE_BYTES = 2 << 30
CPU_SECONDS = 10
_LOOK_SECONDS = 0.02
_IDLE_LOOKS = 750  # 15 s of sleep at every look
_MODULES = (
    *("api", "cli.commands", "registry", "store.storage_posix"),
    *(f"stages.{name}" for name in ("run", "top", "export", "repair", "finalise", "verify")),
    *(f"stages.evaluate.{name}" for name in ("sanity", "mislabel", "retrieval")),
    *("data.arrays", "data.python", "data.tokens", "executors.serial", "codecs.bands"),
    *("projections.principal", "projections.spectral", "readouts.top_k", "readouts.dense"),
)


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Exit code; negative for the signal that ended it.
        hang: Whether it was ended because it used all its time, or waited for nothing.
        told: What it wrote to stdout and stderr.
    """

    code: int
    hang: bool
    told: bytes
    cpu_seconds: float


def prepare() -> None:
    """Import all that a command can need, so that every fork has it."""
    import torch

    torch.set_num_threads(1)
    for name in _MODULES:
        import_module(f"streamfluence.{name}")


def call(words: list[str], folder: Path) -> Ended:
    """Run a command of the program, or the Python API with ``results RUN``, and say how it ended."""
    told = folder / "told"
    started = os.times()
    child = os.fork()
    if child == 0:
        _become(words, told)
    status, hang = _wait(child)
    ended = os.times()
    used = ended.children_user + ended.children_system
    used -= started.children_user + started.children_system
    code = os.waitstatus_to_exitcode(status)
    # At its limit of processor time the system ends a process by this signal.
    hang = hang or code in (-signal.SIGXCPU, -signal.SIGKILL)
    return Ended(code, hang, told.read_bytes(), used)


def _become(words: list[str], told: Path) -> None:
    """Be the command, in the forked process; never returns."""
    code = 1
    try:
        file = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number in (1, 2):
            os.dup2(file, number)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MORE_BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = _results(words[1]) if words[0] == "results" else _program(words)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _program(words: list[str]) -> int:
    from streamfluence.cli import main

    try:
        main(words)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
    return 0


def _results(run: str) -> int:
    """Read everything through the Python API; refusals become exit codes, as in the program."""
    import traceback

    import streamfluence
    from streamfluence.errors import StreamfluenceError

    try:
        opened = streamfluence.open(run)
        opened.results("asked")
        opened.scores("asked").compute(scheduler="synchronous")
        opened.rows("train").compute(scheduler="synchronous")
    except StreamfluenceError as error:
        print(f"error: {error.exit_code}", file=sys.stderr)
        return error.exit_code
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _wait(child: int) -> tuple[int, bool]:
    """Return the status of a child, and whether it had to be ended."""
    idle, before = 0, -1
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status, False
        ticks, sleeps = _state(child)
        idle = idle + 1 if sleeps and ticks == before else 0
        before = ticks
        if idle > _IDLE_LOOKS:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1], True
        time.sleep(_LOOK_SECONDS)


def _state(process: int) -> tuple[int, bool]:
    """Return the ticks of a process and its children, and whether all of their threads sleep."""
    ticks, sleeps = 0, True
    for thread in _threads(process):
        try:
            words = (thread / "stat").read_text().rpartition(")")[2].split()
            for child in (thread / "children").read_text().split():
                more, asleep = _state(int(child))
                ticks, sleeps = ticks + more, sleeps and asleep
        except OSError:
            continue
        ticks += int(words[11]) + int(words[12])
        sleeps = sleeps and words[0] in "SD"
    return ticks, sleeps


def _threads(process: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{process}/task").iterdir())
    except OSError:
        return []
