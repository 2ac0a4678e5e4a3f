"""The small job with a trainer that is quick, and variants of it that are wrong in one way."""

from pathlib import Path

import numpy as np
import torch
from small_job import JOB, TASK, write_job
from torch import nn

TRAIN = """
from pathlib import Path

import numpy as np


def rows_of(folder):
    parts = [np.load(path) for path in sorted(Path(folder).glob("train-*.npz"))]
    return (torch.from_numpy(np.concatenate([part[key] for part in parts])) for key in "xy")


def train(indices, seed):
    torch.manual_seed(seed)
    x, y = rows_of(Path(__file__).parent)
    x, y = x[indices], y[indices]
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5, weight_decay=0.01)
    for _ in range(15):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    return module.state_dict()
"""


def write(folder: Path, old: str = "", new: str = "", n: int = 60) -> Path:
    """Write the job into ``folder``, with ``old`` in its task replaced; return the job's path."""
    path = write_job(folder, n=n, n_queries=5, job=JOB)
    text = TASK + TRAIN
    assert old in text
    (folder / "task.py").write_text(text.replace(old, new) if old else text)
    return path


def outcome(folder: Path, indices: np.ndarray, seed: int, rows: np.ndarray) -> np.ndarray:
    """Return the loss of every query after training on ``rows[indices]``, one query at a time."""
    namespace = {"__file__": str(folder / "task.py")}
    exec((folder / "task.py").read_text(), namespace)
    module = namespace["net"]()
    module.load_state_dict(namespace["train"](rows[indices], seed))
    test = np.load(folder / "test.npz")
    x, y = torch.from_numpy(test["x"]), torch.from_numpy(test["y"])
    losses = [
        nn.functional.cross_entropy(module(x[i : i + 1]), y[i : i + 1]) for i in range(len(x))
    ]
    return np.array([loss.item() for loss in losses])
