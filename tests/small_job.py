"""A small real job for tests: an MLP on three Gaussian classes, its shards, task and job file."""

import textwrap
from pathlib import Path

import numpy as np
import torch
from torch import nn

TASK = """
import torch
from torch import nn

likelihood = "categorical"


def net():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def model(checkpoint):
    module = net()
    module.load_state_dict(torch.load(checkpoint, weights_only=True))
    return module.eval()


def forward(module, batch):
    return module(batch["x"]), batch["y"]
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
blocks = "layer"
damping = 0.01

[compute]
batch_size = 16
partition_examples = 32
executor = "serial"
"""


def write_job(
    folder: Path, n: int = 150, n_queries: int = 7, job: str = JOB, seed: int = 0
) -> Path:
    """Write data, checkpoint, task and job into ``folder``; return the job's path."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    x, y = _classes(generator, n + n_queries)
    cut = n // 3
    for shard, part in enumerate((slice(0, cut), slice(cut, n))):
        np.savez(folder / f"train-{shard}.npz", x=x[part], y=y[part])
    np.savez(folder / "test.npz", x=x[n:], y=y[n:])
    torch.save(_trained(x[:n], y[:n], seed).state_dict(), folder / "model.pt")
    (folder / "task.py").write_text(textwrap.dedent(TASK))
    path = folder / "job.toml"
    path.write_text(job)
    return path


def load(folder: Path) -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the model in float64 and (x, y) of training set and queries."""
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    module.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    parts = [np.load(path) for path in sorted(folder.glob("train-*.npz"))]
    x = torch.from_numpy(np.concatenate([part["x"] for part in parts])).double()
    y = torch.from_numpy(np.concatenate([part["y"] for part in parts]))
    test = np.load(folder / "test.npz")
    return module.double(), x, y, torch.from_numpy(test["x"]).double(), torch.from_numpy(test["y"])


def dense_scores(
    folder: Path,
    damping: float,
    joint: bool = False,
    fisher: bool = False,
    measurement: str = "loss",
    of_training: bool = False,
) -> np.ndarray:
    """Return scores (example, query) by the textbook formula, one backward an example, in float64.

    With ``of_training`` the queries are the training examples themselves.
    """
    module, x, y, qx, qy = load(folder)
    if of_training:
        qx, qy = x, y
    g, q = loss_gradients(module, x, y), loss_gradients(module, qx, qy, measurement)
    hessian = (g.T @ g / len(g)) if fisher else _gauss_newton(module, x)
    if not joint:
        # Parameters come as weight, bias, weight, bias: already layer by layer.
        hessian = hessian * torch.block_diag(torch.ones(35, 35), torch.ones(18, 18)).double()
    solved = torch.linalg.solve(hessian + damping * torch.eye(len(hessian)).double(), q.T)
    return (g @ solved / len(g)).numpy()


def loss_gradients(module, x, y, measurement: str = "loss") -> torch.Tensor:
    """Return one backward pass an example, ``(example, weight)``."""
    rows = []
    for i in range(len(x)):
        loss = nn.functional.cross_entropy(module(x[i : i + 1]), y[i : i + 1])
        if measurement == "margin":  # minus the log-odds of the target
            loss = -torch.log(torch.exp(-loss) / (1 - torch.exp(-loss)))
        rows.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])
        )
    return torch.stack(rows)


def _gauss_newton(module, x) -> torch.Tensor:
    total = 0
    for i in range(len(x)):
        logits = module(x[i : i + 1])[0]
        columns = [
            torch.autograd.grad(logit, list(module.parameters()), retain_graph=True)
            for logit in logits
        ]
        jacobian = torch.stack([torch.cat([g.flatten() for g in column]) for column in columns])
        p = logits.softmax(0).detach()
        total = total + jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
    return total / len(x)


def _classes(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    y = generator.integers(0, 3, count)
    centres = generator.normal(size=(3, 6))
    return (centres[y] + generator.normal(size=(count, 6))).astype(np.float32), y.astype(np.int64)


def _trained(x: np.ndarray, y: np.ndarray, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02, weight_decay=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
    return module
