"""Start-up and status: seconds of `streamfluence --help`, and of `status` on a 1,000-partition run.

    python tools/bench/startup.py

JSON on stdout; medians of whole processes.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _setup import setup

from streamfluence.layout import FORMAT_VERSION, Span, collect_stage
from streamfluence.store import RunStore

PARTITIONS, ROWS = 1000, 64


def synthetic_run(path: str) -> None:
    """Commit the receipts and rows of a run of 1,000 partitions."""
    manifest = {
        "format_version": FORMAT_VERSION,
        "checkpoints": [{"path": "model.pt", "sha256": ""}],
        "train": {
            "count": PARTITIONS * ROWS,
            "partition_examples": ROWS,
            "table": {},
            "identity": {},
        },
    }
    store = RunStore.create(path, manifest)
    rows = np.random.default_rng(0).integers(0, 256, (ROWS, 256), dtype=np.uint8)
    for partition in range(PARTITIONS):
        span = Span(partition * ROWS, (partition + 1) * ROWS)
        facts = {"non_finite": 0, "seconds": 0.1}
        store.commit(collect_stage("train", 0), partition, {"rows": rows}, {}, facts, span=span)


def median_seconds(*arguments: str, repeats: int = 10) -> float:
    """Return the median wall time of the command line with these arguments."""
    program = [sys.executable, "-m", "streamfluence", *arguments]
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    """Print both figures."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "run")
        synthetic_run(path)
        figures = {
            "setup": setup(),
            "help_seconds": median_seconds("--help"),
            "status_seconds_of_1000_partitions": median_seconds("status", path),
        }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
