"""Flat memory: the peak resident memory of `run` on n examples, and on ten times as many.

    python tools/bench/memory.py [--examples 20000]

Each run is a fresh process; the peak is the larger of the process and its workers. JSON on stdout.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from _setup import setup
from torch import nn

TASK = """
import torch
from torch import nn

likelihood = "categorical"


def model(checkpoint):
    net = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    net.load_state_dict(torch.load(checkpoint, weights_only=True))
    return net.eval()


def forward(net, batch):
    return net(batch["x"]), batch["y"]
"""

JOB = """
task = "task.py"
checkpoints = ["model.pt"]
[train]
reader = "arrays"
path = "train-*.npz"
[queries.test]
reader = "arrays"
path = "test.npz"
[curvature]
weight_decay = 1e-3
learning_rate = 1e-3
steps = 1000
optimizer = "adam"
batch_size = 128
[sketch]
examples = 2048
[compute]
batch_size = 128
partition_examples = 4096
executor = "serial"
"""

PROBE = """
import resource, sys
from streamfluence.stages.run import run
run(sys.argv[1], sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def make(folder: Path, count: int) -> None:
    """Write a job of ``count`` examples in shards of 10,000."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for shard, start in enumerate(range(0, count, 10_000)):
        length = min(10_000, count - start)
        x = generator.normal(size=(length, 256)).astype(np.float32)
        np.savez(folder / f"train-{shard:04d}.npz", x=x, y=generator.integers(0, 10, length))
    x = generator.normal(size=(64, 256)).astype(np.float32)
    np.savez(folder / "test.npz", x=x, y=generator.integers(0, 10, 64))
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    torch.save(net.state_dict(), folder / "model.pt")
    (folder / "task.py").write_text(TASK)
    (folder / "job.toml").write_text(JOB)


def peak(folder: Path) -> int:
    """Return the peak resident bytes of one run in a process of its own."""
    command = [sys.executable, "-c", PROBE, str(folder / "job.toml"), str(folder / "run")]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Print both peaks and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=5_000)
    count = parser.parse_args().examples
    with tempfile.TemporaryDirectory() as name:
        peaks = {}
        for examples in (count, 10 * count):
            make(Path(name) / str(examples), examples)
            peaks[examples] = peak(Path(name) / str(examples))
    small, large = peaks.values()
    print(json.dumps({"setup": setup(), "peak_bytes": peaks, "ratio": large / small}, indent=1))


if __name__ == "__main__":
    main()
