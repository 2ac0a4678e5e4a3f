"""`evaluate loo` and `evaluate lds` on multinomial logistic regression trained to its optimum.

    python tools/bench/loo_logistic.py [--examples 500] [--queries 100] [--left-out 500] [--subsets 100]

Digits of scikit-learn in float64, weight decay 1e-2, LBFGS until nothing moves; the measurement
is the margin. Leaving out keeps the 1/n of all examples, so a change is the example's alone.
Everything is done by the real commands; rows of every size are judged by the same retrainings,
which are trained once. JSON on stdout.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _setup import setup
from sklearn.datasets import load_digits

TASK = '''
from pathlib import Path

import numpy as np
import torch
from torch import nn

likelihood = "categorical"
WEIGHT_DECAY = 1e-2


def net():
    return nn.Linear(64, 10).double()


def model(checkpoint):
    module = net()
    module.load_state_dict(torch.load(checkpoint, weights_only=True))
    return module.eval()


def forward(module, batch):
    return module(batch["x"]), batch["y"]


def train(indices, seed):
    """Return the optimum, which no seed can change: the objective is strictly convex."""
    shard = np.load(Path(__file__).parent / "train.npz")
    x, y = torch.from_numpy(shard["x"][indices]), torch.from_numpy(shard["y"][indices])
    module = net()
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.LBFGS(
        module.parameters(), max_iter=2000, max_eval=4000, history_size=50,
        tolerance_grad=1e-11, tolerance_change=0, line_search_fn="strong_wolfe",
    )

    def objective():
        optimizer.zero_grad()
        penalty = sum(parameter.square().sum() for parameter in module.parameters())
        loss = nn.functional.cross_entropy(module(x), y, reduction="sum") / len(shard["y"])
        total = loss + WEIGHT_DECAY / 2 * penalty
        total.backward()
        return total

    optimizer.step(objective)
    return module.state_dict()
'''

JOB = """
task = "task.py"
checkpoints = ["model.pt"]
[train]
reader = "arrays"
path = "train.npz"
[queries.test]
reader = "arrays"
path = "test.npz"
measurement = "margin"
[curvature]
weight_decay = 1e-2
[sketch]
examples = 4096
probes = "exact"
[score]
top_k = 10
"""

ROWS = {
    "every coordinate, float32": ["--set", "rows.codec=float32", "--set", "rows.bytes=0"],
    "256 bytes": [],
    "64 bytes": ["--set", "rows.bytes=64"],
    "empirical Fisher, float32": [
        *("--set", "curvature.name=fisher"),
        *("--set", "rows.codec=float32", "--set", "rows.bytes=0"),
    ],
}


def write_job(folder: Path, examples: int, queries: int) -> None:
    """Write data, checkpoint, task and job."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x, y = digits.data / 16, digits.target.astype(np.int64)
    for name, rows in (
        ("train.npz", order[:examples]),
        ("test.npz", order[examples : examples + queries]),
    ):
        np.savez(folder / name, x=x[rows], y=y[rows])
    (folder / "task.py").write_text(TASK)
    (folder / "job.toml").write_text(JOB)
    namespace: dict[str, Any] = {"__file__": str(folder / "task.py")}
    exec(TASK, namespace)
    torch.save(namespace["train"](np.arange(examples), 0), folder / "model.pt")


def command(*arguments: object) -> dict:
    """Return what the command prints with --json."""
    program = [sys.executable, "-m", "streamfluence", *map(str, arguments), "--json"]
    done = subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def judged(folder: Path, name: str, options: list[str], left_out: int, subsets: int) -> dict:
    """Return the agreement of one kind of rows with leaving one out, and with halves of the data."""
    run = folder / name.replace(" ", "-").replace(",", "")
    command("run", folder / "job.toml", run, *options)
    started = time.perf_counter()
    found = command("evaluate", "loo", run, "--random", left_out, "--seeds", 1)
    seconds = time.perf_counter() - started
    halves = command("evaluate", "lds", run, "--subsets", subsets, "--seeds", 1)
    agreements = ("within_queries", "across_queries", "leverage_corrected", "retrained")
    return {
        **{key: found[key] for key in agreements},
        "loo_seconds": round(seconds, 1),
        "lds": {key: halves[key] for key in ("lds", "low", "high", "retrained", "train_seconds")},
    }


def main() -> None:
    """Print every figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--left-out", type=int, default=500)
    parser.add_argument("--subsets", type=int, default=100)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_job(folder, given.examples, given.queries)
        found = {
            rows: judged(folder, rows, options, given.left_out, given.subsets)
            for rows, options in ROWS.items()
        }
    print(json.dumps({**setup(), **vars(given), "rows": found}, indent=1))


if __name__ == "__main__":
    main()
