"""The first run of a job: what goes wrong says why, leaves nothing in the way, and counts its bytes."""

import shutil

import numpy as np
import pytest
import torch
from calls import invoke
from small_job import TASK, write_job

from streamfluence import budget
from streamfluence.errors import BudgetError, InputError
from streamfluence.execution import Execution
from streamfluence.job_parser import load_job
from streamfluence.run.opened import OpenRun
from streamfluence.run.resolve import open_run
from streamfluence.stages import run as run_stage
from streamfluence.stages.sketch import sketch
from streamfluence.store import RunStore
from streamfluence.store.vacate import vacate

BROKEN = {
    "model": ("module = net()", "module = net(); raise RuntimeError('no such layer')"),
    "forward": ('return module(batch["x"])', 'return module(batch["z"])'),
    "shape": ("nn.Linear(5, 3)", "nn.Linear(5, 2)"),
    "loss": ('batch["y"]', 'batch["y"] + 9'),
    "frozen": ("return module.eval()", "return module.requires_grad_(False).eval()"),
    "training_loss": ("likelihood =", "def training_loss(o, t): return o.sum()\n\nlikelihood ="),
    # Found by the sketch only, when there is a run already.
    "training": ("return module.eval()", "return module.train()"),
    "detached": ('return module(batch["x"])', 'return module(batch["x"]).detach()'),
}


@pytest.fixture
def folder(tmp_path):
    write_job(tmp_path, n=80)
    return tmp_path


def run_job(folder, *arguments):
    return invoke("run", folder / "job.toml", folder / "run", *arguments)


@pytest.mark.parametrize("name", BROKEN)
def test_a_corrected_task_runs_in_the_same_folder(folder, name):
    old, new = BROKEN[name]
    assert TASK.count(old) == 1
    (folder / "task.py").write_text(TASK.replace(old, new))
    result = run_job(folder)
    assert result.exit_code == 2, result.output
    assert (folder / "run" / "manifest.json").exists() == (name in ("training", "detached"))
    (folder / "task.py").write_text(TASK)
    assert run_job(folder).exit_code == 0


@pytest.mark.parametrize("part", ["train-0", "test"])
def test_corrected_data_runs_in_the_same_folder(folder, part):
    path = folder / f"{part}.npz"
    good = dict(np.load(path))
    np.savez(path, x=good["x"], y=good["y"] + 9)
    assert run_job(folder).exit_code == 2
    np.savez(path, **good)
    assert run_job(folder).exit_code == 0


def test_a_run_with_a_sketch_alone_is_said_to_be_removable(folder):
    assert run_job(folder).exit_code == 0
    for rows in ("collect", "score", "scores"):
        shutil.rmtree(folder / "run" / "receipts" / rows)
    (folder / "task.py").write_text(TASK + "other = 1\n")
    result = run_job(folder)
    said = result.output
    assert (
        result.exit_code == 2
        and "no rows are committed yet" in said
        and f"remove {folder / 'run'}" in said
    )


def test_a_measurement_that_fails_leaves_no_run(folder):
    text = (folder / "job.toml").read_text()
    table = '[queries.test]\nmeasurement = "mine"'
    (folder / "job.toml").write_text(text.replace("[queries.test]", table))
    (folder / "task.py").write_text(TASK + "\nmeasurements = {'mine': lambda o, t: 1 / 0}\n")
    assert "ZeroDivisionError" in run_job(folder).output
    assert not (folder / "run" / "manifest.json").exists()


def test_a_run_that_is_there_is_not_rehearsed(folder, monkeypatch):
    assert run_job(folder).exit_code == 0
    monkeypatch.setattr("streamfluence.run.resolve.rehearse", None)
    assert run_job(folder).exit_code == 0


@pytest.mark.parametrize("made", ["receipts/sketch/0/decision/0.json", "parts/x/0.a/zarr.json"])
def test_a_run_in_which_anything_was_made_does_not_give_way(tmp_path, made):
    store = RunStore.create(str(tmp_path / "run"), {"a": 1})
    path = tmp_path / "run" / made
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert not vacate(store.storage, {"a": 2}, {})
    with pytest.raises(InputError, match="another run"):
        RunStore.create(str(tmp_path / "run"), {"a": 2})
    shutil.rmtree(tmp_path / "run" / made.partition("/")[0])
    assert not vacate(store.storage, {"a": 1}, {})
    assert vacate(store.storage, {"a": 2}, {})
    assert RunStore.create(str(tmp_path / "run"), {"a": 2}).manifest["a"] == 2


def test_a_run_of_other_data_gives_way_only_while_nothing_was_made(folder):
    job, path = load_job(folder / "job.toml"), str(folder / "run")
    first = open_run(job, path)
    seal = first.train.seal
    shutil.copy(folder / "train-0.npz", folder / "train-1.npz")
    second = open_run(job, path)
    assert first.fingerprint == second.fingerprint and second.train.seal != seal
    sketch(path, Execution(executor="serial", workers=1, device="cpu"))
    (folder / "train-1.npz").unlink()
    with pytest.raises(InputError, match=r"the training set of .* was made from other data"):
        open_run(job, path)
    assert OpenRun.open(path).train.seal == second.train.seal


def test_what_is_no_run_of_a_job_does_not_give_way(tmp_path):
    store = RunStore.create(str(tmp_path / "truth"), {"holds": "retrainings"})
    assert not vacate(store.storage, {"a": 2}, {})


QUANTISED = """
class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.zeros(3, 6, dtype=torch.int8))
        self.scale = nn.Parameter(torch.ones(3), requires_grad=False)
    def forward(self, x):
        return x @ self.weight.float().T * self.scale
def model(checkpoint):
    return Packed().eval()
"""


def test_a_model_without_trainable_weights_is_told_so(folder):
    (folder / "task.py").write_text(TASK + QUANTISED)
    said = run_job(folder).output
    assert "no trainable weights (it has none, or only quantised ones)" in said
    assert "before quantisation" in said
    old, new = BROKEN["frozen"]
    (folder / "task.py").write_text(TASK.replace(old, new))
    said = run_job(folder).output
    assert "no trainable weights (all 4 are frozen)" in said and "requires_grad = True" in said


def full_disk(monkeypatch, free: int):
    monkeypatch.setattr(budget, "free_bytes", lambda path: free)


def needed(folder) -> int:
    """What the missing rows take, in bytes: 8 + 3 * 4 + 1 + 8 beside each row."""
    store = OpenRun.open(str(folder / "run"))
    rows = store.read(store.receipt("collect/train/0", 0), "rows")
    query = store.read(store.receipt("collect/test/0", 0), "rows")
    return 80 * (rows[0].nbytes + 29) + 7 * (query[0].nbytes + 29)


EXACT = (
    "--set",
    "rows.bytes=0",
    "--set",
    "rows.codec=float32",
    "--set",
    "projection.name=identity",
)


def test_exact_rows_count_against_the_disk(folder, monkeypatch):
    assert run_job(folder, *EXACT).exit_code == 0
    total = needed(folder)
    shutil.rmtree(folder / "run")
    full_disk(monkeypatch, total - 1)
    result = run_job(folder, *EXACT)
    assert result.exit_code == 2 and f"needs {budget.size(total)}" in result.output
    full_disk(monkeypatch, total)
    assert run_job(folder, *EXACT).exit_code == 0


def test_every_checkpoint_of_a_pattern_counts(folder, monkeypatch):
    for number in range(3):
        shutil.copy(folder / "model.pt", folder / f"epoch-{number}.pt")
    text = (folder / "job.toml").read_text().replace('"model.pt"', '"epoch-*.pt"')
    (folder / "job.toml").write_text(text)
    full_disk(monkeypatch, 3 * 80 * (256 + 29) - 1)
    result = run_job(folder)
    assert result.exit_code == 2 and "needs 67.39 KiB" in result.output
    assert "--bytes" in result.output or "rows.bytes" in result.output


def test_what_is_stored_already_does_not_count_again(folder, monkeypatch):
    assert run_job(folder).exit_code == 0
    OpenRun.open(str(folder / "run")).discard("collect/train/0", 1)
    full_disk(monkeypatch, 40 * (256 + 29))
    assert run_job(folder).exit_code == 0


def test_sizes_that_differ_read_differently():
    cost = budget.Cost(2**30 + 1, 0, 2**30 + 1, 0, 0.0)
    with pytest.raises(BudgetError, match=r"1,073,741,825 bytes.*1,073,741,824 bytes"):
        budget.refuse_what_does_not_fit(cost, "run", 2**30)
    with pytest.raises(BudgetError, match="needs 5 KiB, but --memory allows 3 KiB"):
        budget.refuse_what_does_not_fit(budget.Cost(0, 0, 5 << 10, 0, 0.0), "run", 3 << 10)


def test_a_disk_too_small_says_so_in_units_that_show_it(monkeypatch):
    full_disk(monkeypatch, 1000)
    with pytest.raises(BudgetError, match="needs 2 KiB, but run has 1000 B free"):
        budget.refuse_what_does_not_fit(budget.Cost(2048, 0, 0, 0, 0.0), "run", None)


def test_the_run_stage_tries_the_task_on_its_own_device(folder, monkeypatch):
    seen = []
    real = run_stage.open_run
    monkeypatch.setattr(
        run_stage, "open_run", lambda *a, **k: seen.append(k["device"]) or real(*a, **k)
    )
    assert run_job(folder, "--device", "cpu").exit_code == 0
    assert seen == ["cpu"] and torch.device(seen[0]).type == "cpu"
