"""What the peers' scripts share, without the peers: losses, model outputs, results, failures."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from patience import HANG_SECONDS

from streamfluence.likelihoods.categorical import Categorical
from streamfluence.likelihoods.gaussian import Gaussian

PEERS = Path(__file__).parent.parent / "tools" / "peers"
TASK = """
import torch

likelihood = "{likelihood}"
reduction = "mean"
ignore_index = 3


def model(checkpoint):
    net = torch.nn.Linear(5, {outputs})
    net.load_state_dict(torch.load(checkpoint))
    return net


def forward(net, batch):
    return net(batch["x"]), batch["y"]
"""


@pytest.fixture
def shared(monkeypatch):
    """Return the module that every peer's script imports."""
    monkeypatch.syspath_prepend(str(PEERS))
    import _case

    return _case


def write_case(folder: Path, likelihood: str, shape: tuple[int, ...], n_outputs: int = 4) -> Path:
    """Write a case: 7 examples and 3 queries of ``shape`` positions."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    (folder / "task.py").write_text(TASK.format(likelihood=likelihood, outputs=n_outputs))
    for name, count in (("train", 7), ("queries", 3)):
        x = generator.normal(size=(count, *shape, 5)).astype(np.float32) * 5
        y = generator.integers(0, 4, (count, *shape))
        if likelihood == "gaussian":
            y = generator.normal(size=(count, *shape, n_outputs)).astype(np.float32)
        np.savez(folder / f"{name}.npz", x=x, y=y)
    torch.manual_seed(0)
    torch.save(torch.nn.Linear(5, n_outputs).state_dict(), folder / "net0.pt")
    return folder


@pytest.mark.parametrize(
    ("likelihood", "shape", "ours"),
    [
        ("categorical", (), Categorical("mean", ignore_index=3)),
        ("categorical", (6,), Categorical("mean", ignore_index=3)),
        ("gaussian", (), Gaussian("mean")),
    ],
)
def test_the_peers_get_the_loss_the_library_has(tmp_path, shared, likelihood, shape, ours):
    case = shared.Case(write_case(tmp_path / "case", likelihood, shape), 0)
    x, y = case.train.tensors
    outputs = case.network(x)
    torch.testing.assert_close(case.losses(outputs, y), ours.loss(outputs, y))
    if likelihood == "categorical":
        torch.testing.assert_close(case.margins(outputs, y), ours.margin(outputs, y))


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_pull_is_minus_the_derivative_of_the_loss_in_the_model_output(tmp_path, shared, likelihood):
    n_outputs = 4 if likelihood == "categorical" else 1
    case = shared.Case(write_case(tmp_path / "case", likelihood, (), n_outputs), 0)
    x, y = case.train.tensors
    outputs = case.network(x).detach().double()
    direction = torch.from_numpy(np.random.default_rng(1).normal(size=outputs.shape)) * 1e-5
    up, down = outputs + direction, outputs - direction
    moved_loss = case.losses(up, y) - case.losses(down, y)
    moved_output = case.margins(up, y) - case.margins(down, y)
    expected = -case.pulls(outputs, y) * moved_output
    torch.testing.assert_close(moved_loss, expected, rtol=1e-3, atol=1e-12)


def test_confident_predictions_keep_their_gradient(tmp_path, shared):
    case = shared.Case(write_case(tmp_path / "case", "categorical", ()), 0)
    outputs = torch.tensor([[60.0, 0.0, 0.0, 0.0]], requires_grad=True)
    case.margins(outputs, torch.tensor([0])).sum().backward()
    torch.testing.assert_close(outputs.grad, torch.tensor([[1.0, -1 / 3, -1 / 3, -1 / 3]]))


def test_scores_are_written_example_by_query_and_a_failure_becomes_a_line(
    tmp_path, shared, monkeypatch, capsys
):
    case_path, out = write_case(tmp_path / "case", "categorical", ()), tmp_path / "out"

    def score(case, offset, value):
        return torch.arange(21.0).view(7, 3) + offset + value, 12

    methods = [
        shared.Method("sound", {"sound-1": 1.0, "sound-2": 2.0}, lambda case: 100.0, score),
        shared.Method(
            "turned", {"turned": None}, lambda case: None, lambda *_: (torch.ones(3, 7), 0)
        ),
    ]
    monkeypatch.setattr(sys, "argv", ["score", str(case_path), str(out)])
    threads = torch.get_num_threads()
    shared.main("numpy", methods)
    torch.set_num_threads(threads)
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [line.get("setting") for line in lines] == ["sound-1", "sound-2", None]
    assert lines[0]["row_bytes"] == 12 and lines[0]["finite"]
    assert "AssertionError: (3, 7)" in lines[2]["error"]
    stored = np.load(out / "numpy-sound-2-net0.npy")
    assert stored.dtype == np.float32 and stored[1, 0] == 105.0
    assert "Traceback" in capsys.readouterr().err


def test_a_method_that_dies_or_hangs_leaves_a_line(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(PEERS))
    import run

    (tmp_path / "score_dead.py").write_text("import os\nos._exit(9)\n")
    (tmp_path / "score_slow.py").write_text("import time\ntime.sleep(10**6)\n")
    monkeypatch.setattr(run, "HERE", tmp_path)
    for peer, seconds in (("dead", HANG_SECONDS), ("slow", 1)):
        options = type("Options", (), {"case": tmp_path, "out": tmp_path, "timeout": seconds})
        run._score(Path(sys.executable), peer, "any", 0, options)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["error"] for line in lines] == [
        "exit status 9, see dead-any-net0.log",
        "ran past 1 s",
    ]
    assert run._is_done(tmp_path, "dead", "any", 0) and not run._is_done(tmp_path, "dead", "any", 1)


def test_run_refuses_a_folder_that_is_no_case(tmp_path):
    command = [sys.executable, str(PEERS / "run.py"), str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "has no task.py" in done.stderr
    assert not (tmp_path / "out").exists()
