"""A small finished run to damage: every kind of file that a run can hold, in under a second of work.

Two checkpoints, two query sets, several partitions of each, every readout, results of two
dampings, canonical arrays of every set, ids and groups of the user's own, and one row that is
quarantined. Beside it lie runs of the same job that differ in one thing, from which stale
files are taken.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from streamfluence.execution import Execution
from streamfluence.scoring import spec as scoring
from streamfluence.scoring.asked import Asked
from streamfluence.stages.finalise import finalise
from streamfluence.stages.run import run
from streamfluence.stages.score import score

SERIAL = Execution(executor="serial", workers=1, device="cpu")
QUERY_SETS = ("asked", "other")
SETS = ("train", *QUERY_SETS)
CHECKPOINTS = 2
OTHERS = ("damping", "seed", "data", "train", "queries", "readouts")
DAMPING = 0.05  # of the second result, and of the one that is asked of a damaged run
_N, _QUERIES = 40, {"asked": 20, "other": 18}

TASK = """
import torch
from torch import nn

likelihood = "categorical"


def model(checkpoint):
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    module.load_state_dict(torch.load(checkpoint, weights_only=True))
    return module.eval()


def forward(module, batch):
    return module(batch["x"]), batch["y"]
"""

_READER = """reader = "arrays"
path = "{pattern}"
fields = ["x", "y"]
id_field = "key"
group_field = "y"
"""

JOB = f"""
task = "task.py"
checkpoints = ["first.pt", "second.pt"]
checkpoint_weights = [0.25, 0.75]

[train]
{_READER.format(pattern="train-*.npz")}
[queries.asked]
{_READER.format(pattern="asked.npz")}
[queries.other]
measurement = "margin"
{_READER.format(pattern="other.npz")}
[sketch]
examples = 16

[curvature]
optimizer = "adam"
learning_rate = 0.02
steps = 150
batch_size = 8
weight_decay = 0.01

[rows]
bytes = 24
max_non_finite = 0.1

[score]
readouts = ["top_k", "self_influence", "aggregate", "subset_sum", "dense"]
top_k = 12
subsets = "subsets.json"

[compute]
batch_size = 8
partition_examples = 16
executor = "serial"
workers = 1
"""


@dataclass(frozen=True)
class Case:
    """Where everything lies.

    Attributes:
        job: The job's file, its data beside it.
        run: The finished run.
        stale: Finished runs that differ from it in one thing, by what that is.
    """

    job: Path
    run: Path
    stale: dict[str, Path]


@contextmanager
def several_tasks(rows: int = 32) -> Iterator[None]:
    """Let a result of a few rows have more than one task, as one of millions has."""
    before = scoring.TASK_ROWS
    scoring.TASK_ROWS = rows
    try:
        yield
    finally:
        scoring.TASK_ROWS = before


def make_case(folder: Path, seed: int = 0, kinds: Sequence[str] = OTHERS) -> Case:
    """Write the data, the job and all runs below ``folder``.

    Args:
        kinds: In what the runs beside it differ, of ``OTHERS``.
    """
    job = write_job(folder / "job", seed)
    makers = {
        "damping": lambda at: _finished(job, at, {"curvature.damping": 0.5}),
        "seed": lambda at: _finished(job, at, {"sketch.seed": 7}),
        "data": lambda at: _finished(write_job(folder / "other-data", seed + 1), at),
        "train": lambda at: _finished(_with_train(job, folder / "other-train", seed + 1), at),
        "queries": lambda at: _finished(_with_queries(job, folder / "other-queries", seed + 1), at),
        "readouts": lambda at: _finished(job, at, {"score.top_k": 5}),
    }
    stale = {kind: makers[kind](folder / kind) for kind in kinds}
    return Case(job, _finished(job, folder / "run"), stale)


def write_job(folder: Path, seed: int, job: str = JOB) -> Path:
    """Write data, checkpoints, task and job; return the job's path."""
    folder.mkdir(parents=True)
    chance = np.random.default_rng(seed)
    centres = chance.normal(size=(3, 6))
    train = _examples(chance, centres, _N, 1000)
    train["x"][21] = np.nan
    cut = _N // 3
    save: Any = np.savez  # whose named arrays the checker takes for its options
    for shard, part in enumerate((slice(0, cut), slice(cut, _N))):
        save(folder / f"train-{shard}.npz", **{key: a[part] for key, a in train.items()})
    for number, (name, count) in enumerate(_QUERIES.items()):
        save(folder / f"{name}.npz", **_examples(chance, centres, count, 5000 * (number + 1)))
    for number, name in enumerate(("first.pt", "second.pt")):
        torch.save(_trained(train, seed + number).state_dict(), folder / name)
    (folder / "subsets.json").write_text("[[0, 3, 17, 39], [5, 35], [21, 22]]")
    (folder / "task.py").write_text(TASK)
    (folder / "job.toml").write_text(job)
    return folder / "job.toml"


def _examples(
    chance: np.random.Generator, centres: np.ndarray, count: int, first: int
) -> dict[str, np.ndarray]:
    y = chance.integers(0, 3, count)
    x = (centres[y] + chance.normal(size=(count, 6))).astype(np.float32)
    return {"x": x, "y": y.astype(np.int64), "key": first + chance.permutation(count)}


def _trained(train: dict[str, np.ndarray], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02, weight_decay=0.01)
    x, y = torch.from_numpy(np.nan_to_num(train["x"])), torch.from_numpy(train["y"])
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    return module


def _with_train(job: Path, folder: Path, seed: int) -> Path:
    """Return the same job, so with the same fingerprint, with a training set of other data."""
    return _with_other(job, folder, seed, ["train-*"])


def _with_queries(job: Path, folder: Path, seed: int) -> Path:
    """Return the same job, so with the same fingerprint, with query sets of other data."""
    return _with_other(job, folder, seed, QUERY_SETS)


def _with_other(job: Path, folder: Path, seed: int, names: Sequence[str]) -> Path:
    other = write_job(folder, seed).parent
    text = job.read_text()
    for name in names:
        text = text.replace(f'"{name}.npz"', f'"{other / name}.npz"')
    moved = job.with_name(f"job-of-{folder.name}.toml")
    moved.write_text(text)
    return moved


def _finished(job: Path, target: Path, changes: dict[str, Any] | None = None) -> Path:
    make_run(job, target, changes)
    with several_tasks():
        readouts = ["top_k", "self_influence"]
        score(str(target), ["asked"], DAMPING, Asked(readouts, 4), execution=SERIAL)
    return target


def make_run(job: Path, target: Path, changes: dict[str, Any] | None = None) -> None:
    """Run a job to its end, and finalise every set."""
    with several_tasks():
        run(job, str(target), changes)
    for name in SETS:
        finalise(str(target), name)
