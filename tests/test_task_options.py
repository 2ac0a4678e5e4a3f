"""Whole runs of tasks with scalar outputs, missing targets, soft labels, weights or a training loss.

The reference is the textbook formula in float64: one backward pass an example, and the Hessian of
the likelihood's loss in the outputs of one example by autograd.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import streamfluence
from streamfluence.errors import InputError
from streamfluence.evaluation.pilot.examples import choose_pilot
from streamfluence.evaluation.pilot.reference import reference_scores
from streamfluence.registry import member
from streamfluence.run.session import open_session
from streamfluence.stages.evaluate.sanity import evaluate_sanity
from streamfluence.stages.run import run
from streamfluence.task_file import load_task

N, QUERIES, DAMPING = 40, 5, 0.05
TASK = """
import torch
import torch.nn.functional as F
from torch import nn
def model(checkpoint):
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    net.load_state_dict(torch.load(checkpoint, weights_only=True))
    return net.eval()
"""
JOB = f"""
task = "task.py"
checkpoints = ["model.pt"]
[train]
reader = "arrays"
path = "train.npz"
[queries.test]
reader = "arrays"
path = "test.npz"
measurement = "MEASUREMENT"
[projection]
name = "identity"
[curvature]
blocks = "joint"
damping = {DAMPING}
[sketch]
probes = "exact"
[rows]
bytes = 0
codec = "float32"
[compute]
batch_size = 16
executor = "serial"
"""


def squared(out, b):
    return (out[0] - b["t"][0]) ** 2 / 2


def logistic(out, b):
    return F.binary_cross_entropy_with_logits(out[0], (b["t"][0] > 0).double())


def missing(out, b):
    losses = [(out[i] - b["m"][i]) ** 2 / 2 for i in range(3) if not torch.isnan(b["m"][i])]
    return sum(losses, 0 * out.sum()) / max(len(losses), 1)


def ignored(out, b):
    kept = [i for i in range(3) if not torch.isnan(b["m"][i])]
    losses = [F.binary_cross_entropy_with_logits(out[i], b["p"][i]) for i in kept]
    return sum(losses, 0 * out.sum())


def soft(out, b):
    return -b["w"] * (b["p"] / b["p"].sum() * out.log_softmax(0)).sum()


def entropy(out, b):
    return F.cross_entropy(out[None], b["y"][None])


def smooth(out, b):
    return F.cross_entropy(out[None], b["y"][None], label_smoothing=0.3) + 0.1 * (out[0] - 1) ** 2


# Task source, loss of a training example, loss of a query, and the loss whose curvature counts.
CASES = {
    "scalar_gaussian": (
        "likelihood = \"gaussian\"\ndef forward(net, b): return net(b['x'])[:, 0], b['t'][:, 0]",
        *[squared] * 3,
    ),
    "scalar_bernoulli": (
        'likelihood = "bernoulli"\n'
        "def forward(net, b): return net(b['x'])[:, 0], (b['t'][:, 0] > 0).float()",
        *[logistic] * 3,
    ),
    "missing_gaussian": (
        'likelihood, reduction = "gaussian", "mean"\n'
        "def forward(net, b): return net(b['x']), b['m']",
        *[missing] * 3,
    ),
    "ignored_bernoulli": (
        'likelihood, ignore_index = "bernoulli", -1\n'
        "def forward(net, b): return net(b['x']), b['p'].masked_fill(b['m'].isnan(), -1)",
        *[ignored] * 3,
    ),
    "soft_and_weighted": (
        'likelihood = "categorical"\n'
        "def forward(net, b): return net(b['x']), b['p'] / b['p'].sum(1, keepdim=True), b['w']",
        *[soft] * 3,
    ),
    "training_loss": (
        'likelihood = "categorical"\n'
        "def forward(net, b):\n"
        "    out = net(b['x'])\n"
        "    return out, b['y'], None, 0.1 * (out[:, 0] - 1) ** 2\n"
        "def training_loss(outputs, targets, weights, extra):\n"
        "    smooth = F.cross_entropy(outputs, targets, reduction='none', label_smoothing=0.3)\n"
        "    return smooth + extra",
        *(smooth, entropy, entropy),
    ),
}


def write(folder: Path, source: str, measurement: str = "loss") -> Path:
    generator = np.random.default_rng(0)
    for part, n in (("train", N), ("test", QUERIES)):
        m = generator.normal(size=(n, 3))
        m[generator.random((n, 3)) < 0.4] = np.nan
        arrays = {
            "x": generator.normal(size=(n, 4)),
            "t": generator.normal(size=(n, 1)),
            "m": m,
            "p": generator.random((n, 3)),
            "w": generator.random(n) * (generator.random(n) < 0.8),
        }
        arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
        np.savez(folder / f"{part}.npz", **arrays, y=generator.integers(0, 3, n))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    torch.save(net.state_dict(), folder / "model.pt")
    (folder / "task.py").write_text(TASK + source)
    path = folder / "job.toml"
    path.write_text(JOB.replace("MEASUREMENT", measurement))
    return path


def expected(folder: Path, train_loss, query_loss, curved) -> np.ndarray:
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    net.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    net.double()
    weights = list(net.parameters())

    def examples(part):
        stored = np.load(folder / f"{part}.npz")
        for i in range(len(stored["y"])):
            b = {name: torch.from_numpy(np.asarray(stored[name][i])) for name in stored}
            yield {name: v.double() if v.is_floating_point() else v for name, v in b.items()}

    def flat(value):
        found = torch.autograd.grad(value, weights, retain_graph=True)
        return torch.cat([g.flatten() for g in found])

    hessian, rows = 0, []
    for b in examples("train"):
        out = net(b["x"])
        rows.append(flat(train_loss(out, b)))
        jacobian = torch.stack([flat(o) for o in out])
        s = torch.autograd.functional.hessian(lambda o, b=b: curved(o, b), out.detach())
        hessian = hessian + jacobian.T @ s @ jacobian / N
    queries = torch.stack([flat(query_loss(net(b["x"]), b)) for b in examples("test")])
    damped = hessian + DAMPING * torch.eye(len(hessian)).double()
    return (torch.stack(rows) @ torch.linalg.solve(damped, queries.T) / N).numpy()


@pytest.mark.parametrize("case", CASES)
def test_scores_are_the_textbook_influence(tmp_path, case):
    source, *losses = CASES[case]
    run(write(tmp_path, source), str(tmp_path / "run"))
    wanted = expected(tmp_path, *losses)
    found = streamfluence.open(str(tmp_path / "run")).scores().compute()
    assert abs(found - wanted).max() < 2e-4 * abs(wanted).max()
    # What judges runs gives the same: unprojected Gauss-Newton, and the checks of a run.
    pilot = choose_pilot(open_session(str(tmp_path / "run"), "cpu"), N, None, QUERIES)
    solver = member("solvers", "conjugate_gradients")(tolerance=1e-9)
    solved = reference_scores(pilot, {"joint": DAMPING}, by_layer=False, double=True, solver=solver)
    assert abs(solved.scores - wanted).max() < 1e-4 * abs(wanted).max()
    checks = evaluate_sanity(str(tmp_path / "run"), sample=N, n_queries=QUERIES)["checks"]
    # The weights are random, which two of the checks rightly notice.
    exact = [c for c in checks if "optimum" not in c["check"] and "shuffled" not in c["check"]]
    assert len(exact) >= 5 and all(c["verdict"] == "passed" for c in exact)


def test_a_query_may_be_measured_by_the_training_loss(tmp_path):
    source, *_ = CASES["training_loss"]
    run(write(tmp_path, source, "training_loss"), str(tmp_path / "run"))
    wanted = expected(tmp_path, smooth, smooth, entropy)
    found = streamfluence.open(str(tmp_path / "run")).scores().compute()
    assert abs(found - wanted).max() < 2e-4 * abs(wanted).max()


BATCH = {"x": torch.zeros(2, 4), "y": torch.zeros(2, dtype=torch.int64)}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def forward(net, b): return net(b['x']), b['y'], None, 1", "only for training_loss"),
        ("def forward(net, b): return net(b['x']), b['y'], 'w'", "two tensors, or"),
        ("def forward(net, b): return net(b['x'])", "two tensors, or"),
        (
            "def forward(net, b): return net(b['x']), b['y']\n"
            "def training_loss(outputs, targets): return outputs.sum()",
            r"training_loss must return shape \(example,\), \(2,\) here, got \(\)",
        ),
        (
            "measurements = {'training_loss': 1}\ndef forward(net, b): return net(b['x']), b['y']",
            "mean something already",
        ),
        ("training_loss = 3\ndef forward(net, b): return net(b['x']), b['y']", "is a function"),
    ],
)
def test_what_a_task_may_not_return_is_refused(tmp_path, source, words):
    write(tmp_path, 'likelihood = "categorical"\n' + source)
    with pytest.raises(InputError, match=words):
        task = load_task("task.py", tmp_path)
        task.training_loss(task.forward(task.model(tmp_path / "model.pt"), BATCH))


def test_a_training_loss_without_a_likelihood_is_refused(tmp_path):
    source = "def loss(net, b): return net(b['x']).sum(1)\ndef training_loss(o, t): return o"
    write(tmp_path, source)
    with pytest.raises(InputError, match="beside a likelihood"):
        load_task("task.py", tmp_path)
