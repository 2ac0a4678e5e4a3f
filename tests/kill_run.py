"""Kill `run` again and again at random moments: python kill_run.py JOB RUN KILLS SEED

Children are forked from a process that has imported everything and used nothing, so a
kill costs no start-up. Prints, as JSON, the kills that hit a running child.
"""

import json
import os
import random
import signal
import sys
import time

import torch

from streamfluence.stages.run import run


def child(job: str, target: str) -> int:
    """Start one run; return its process id."""
    pid = os.fork()
    if pid == 0:
        run(job, target)
        os._exit(0)
    return pid


def main() -> None:
    """Kill until enough kills hit, then let one run finish."""
    job, target, kills, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    chance, hits, longest = random.Random(seed), 0, 0.3
    while hits < kills:
        pid = child(job, target)
        time.sleep(chance.uniform(0.0, longest))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            break  # it had finished before
        hits += 1
    _, status = os.waitpid(child(job, target), 0)
    print(json.dumps({"hits": hits, "exit": os.waitstatus_to_exitcode(status)}))


if __name__ == "__main__":
    main()
