"""Kill `run` again and again at random moments: python kill_run.py JOB RUN KILLS SEED

A moment is a number of files that were flushed, so that it lies amid the work on any machine.

Children are forked from a process that has imported everything and used nothing, so a
kill costs no start-up. Prints, as JSON, the kills that hit a running child.
"""

import json
import os
import random
import signal
import sys

import torch

from streamfluence.stages.run import run

MOST_FLUSHED = 120  # before a kill; a run flushes some thousands


def child(job: str, target: str) -> tuple[int, int]:
    """Start one run; return its process id, and a pipe that gets a byte for every flush."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        flush = os.fsync

        def counted(file: int) -> None:
            flush(file)
            os.write(writer, b".")

        os.fsync = counted
        run(job, target)
        os._exit(0)
    os.close(writer)
    return pid, reader


def wait_for(flushed: int, reader: int) -> bool:
    """Return whether a child flushed so many files before it ended."""
    while flushed > 0:
        read = len(os.read(reader, flushed))
        if not read:
            return False
        flushed -= read
    return True


def main() -> None:
    """Kill until enough kills hit, then let one run finish."""
    job, target, kills, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    chance, hits = random.Random(seed), 0
    while hits < kills:
        pid, reader = child(job, target)
        going = wait_for(chance.randrange(MOST_FLUSHED), reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        if not going:
            break  # it had finished before
        hits += 1
    pid, reader = child(job, target)
    while os.read(reader, 1 << 16):
        pass
    _, status = os.waitpid(pid, 0)
    print(json.dumps({"hits": hits, "exit": os.waitstatus_to_exitcode(status)}))


if __name__ == "__main__":
    main()
