"""Scores of a recorded training, against loops over its steps in float64 and training again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import invoke, ok, refused
from small_job import JOB, _gauss_newton, loss_gradients, write_job
from torch import nn

import streamfluence
from streamfluence.errors import InputError
from streamfluence.recorded import open_record, weights_path
from streamfluence.run.opened import OpenRun
from streamfluence.scoring.source import refuse_unfit

STEPS, SIZE, RATE, DECAY = 20, 8, 0.1, 0.05
RECORDED = (
    JOB.partition("[curvature]")[0].replace('["model.pt"]', '["record/final.pt"]')
    + """
[curvature]
name = "identity"
[projection]
name = "gaussian"
width = 50
[score]
source = "recorded"
record = "record"
readouts = ["top_k", "dense"]
[compute]
executor = "serial"
partition_examples = 64
"""
)
FISHER = ("--set", "score.scan_options={curvature = 'fisher'}")


def net():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def data(folder, kind="train"):
    parts = [np.load(path) for path in sorted(Path(folder).glob(f"{kind}*.npz"))]
    x, y = (np.concatenate([part[name] for part in parts]) for name in "xy")
    return torch.from_numpy(x), torch.from_numpy(y)


def batches():
    """Return the examples of every step; some come twice, and 140 and on never."""
    generator = torch.Generator().manual_seed(3)
    return torch.cat([torch.randperm(140, generator=generator) for _ in range(2)]).split(SIZE)[
        :STEPS
    ]


def train(folder, every=1, optimizer=None, named=None, record="record"):
    torch.manual_seed(1)
    x, y = data(folder)
    module = net()
    moving = (optimizer or torch.optim.SGD)(module.parameters(), lr=RATE, weight_decay=DECAY)
    with streamfluence.record(folder / record, module, moving, every=every) as recording:
        for rows in batches():
            moving.zero_grad()
            nn.functional.cross_entropy(module(x[rows]), y[rows]).backward()
            recording.batch([named(row) for row in rows.tolist()] if named else rows)
            moving.step()


def module_at(folder, path):
    module = net()
    module.load_state_dict(torch.load(folder / path, weights_only=True))
    return module.double()


def by_hand(folder, fisher=False, upto=STEPS, final="record/final.pt", count=150):
    """Return scores ``(example, query)``: queries' gradients taken back step by step."""
    (x, y), (qx, qy) = data(folder), data(folder, "test")
    x, qx = x.double(), qx.double()
    asked = loss_gradients(module_at(folder, final), qx, qy)
    recorded, scores = open_record(folder / "record"), torch.zeros(count, len(qx)).double()
    for number in reversed(range(upto)):
        step = recorded.steps[number]
        module = module_at(folder, weights_path(Path("record"), step.weights))
        rows = list(step.examples)
        gradients = loss_gradients(module, x[rows], y[rows])
        for row, gradient in zip(rows, gradients, strict=True):
            scores[row] += RATE / len(rows) * asked @ gradient
        matrix = gradients.T @ gradients / len(rows) if fisher else _gauss_newton(module, x[rows])
        asked = (1 - RATE * DECAY) * asked - RATE * asked @ matrix
    return scores.numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("recorded")
    write_job(path, job=RECORDED)
    train(path)
    ok("run", path / "job.toml", path / "run")
    return path


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "job")
    shutil.rmtree(tmp_path / "job" / "run")
    return tmp_path / "job"


def dense(run, label="test"):
    return streamfluence.open(str(run)).results(label)["dense.scores"].compute()


def close(found, wanted, relative=1e-5):
    assert np.abs(found - wanted).max() < relative * np.abs(wanted).max()


def test_scores_are_gradients_of_queries_taken_back_through_every_step(folder):
    found = dense(folder / "run")
    close(found, by_hand(folder))
    assert not found[140:].any() and found[:140].any(1).all()


def test_they_rank_as_training_again_without_the_example_does(folder):
    (x, y), (qx, qy) = data(folder), data(folder, "test")

    def losses(without):
        module = module_at(folder, weights_path(Path("record"), 0))
        moving = torch.optim.SGD(module.parameters(), lr=RATE, weight_decay=DECAY)
        for rows in batches():
            moving.zero_grad()
            each = nn.functional.cross_entropy(module(x[rows].double()), y[rows], reduction="none")
            (each * (rows != without)).mean().backward()
            moving.step()
        return nn.functional.cross_entropy(module(qx.double()), qy, reduction="none").detach()

    before, chosen = losses(-1), range(0, 140, 5)
    truth = np.stack([(losses(row) - before).numpy() for row in chosen])
    scores = dense(folder / "run")[list(chosen)]
    ranks = [each.argsort(0).argsort(0) for each in (scores, truth)]
    found = [np.corrcoef(*pair)[0, 1] for pair in zip(*(each.T for each in ranks), strict=True)]
    assert np.mean(found) > 0.95
    assert np.polyfit(scores.ravel(), truth.ravel(), 1)[0] == pytest.approx(1, abs=0.1)


def test_weights_of_every_third_step_stand_for_those_between(copy):
    """By the Fisher matrix, which is another option of the scan."""
    shutil.rmtree(copy / "record")
    train(copy, every=3)
    ok("run", copy / "job.toml", copy / "run", *FISHER)
    close(dense(copy / "run"), by_hand(copy, fisher=True))


def test_weights_of_a_step_are_scored_by_the_steps_before(copy):
    path = "record/weights/00000011.pt"
    job = (copy / "job.toml").read_text().replace("record/final.pt", path)
    (copy / "job.toml").write_text(job)
    ok("run", copy / "job.toml", copy / "run")
    close(dense(copy / "run"), by_hand(copy, upto=11, final=path))


@pytest.mark.parametrize(
    "changes", [("--set", "compute.batch_size=5", "--set", "compute.partition_examples=45")]
)
def test_partitions_and_batches_change_nothing(folder, copy, changes):
    ok("run", copy / "job.toml", copy / "run", *changes)
    close(dense(copy / "run"), dense(folder / "run"), 1e-6)


def test_more_weights_than_a_scan_takes_are_projected(copy, monkeypatch):
    monkeypatch.setattr("streamfluence.scoring.sources._walk.MOST_WIDTH", 52)
    fitted = ("--set", "projection.name=spectral")
    said = refused("run", copy / "job.toml", copy / "run", *fitted)
    assert "the model has 53 weights" in said and "'sparse_jl'" in said
    ok("run", copy / "job.toml", copy / "run")
    told = json.loads(ok("top", copy / "run", "0", "--json"))["record"]
    assert (told["projection"], told["directions"]) == ("gaussian", 50)
    found, wanted = dense(copy / "run").ravel(), by_hand(copy).ravel()
    assert 0.6 < np.corrcoef(found, wanted)[0, 1] < 0.9999


def test_what_a_score_is_is_said_with_it(folder):
    told = json.loads(ok("top", folder / "run", "test/2", "-k", "3", "--json"))
    scores = by_hand(folder)[:, 2]
    assert [each["row"] for each in told["helps"]] == np.argsort(-scores)[:3].tolist()
    assert [each["row"] for each in told["hurts"]] == np.argsort(scores)[:3].tolist()
    assert all(each["loss"] > 0 and each["self_influence"] is None for each in told["helps"])
    record = told["record"]
    assert "left out of the recorded steps it was in" in record["meaning"]
    assert record["source"] == "recorded" and record["steps"] == STEPS
    assert record["damping"] is None and "gauss_newton" in record["curvature"]
    assert not [doubt for doubt in record["warnings"] if "damping" in doubt]


def test_export_has_no_loss_of_what_was_never_trained_on(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "job")
    folder = tmp_path / "job"
    ok(
        "score",
        folder / "run",
        "--top-k",
        150,
        "--name",
        "all",
        "--source",
        "recorded",
        "--record",
        folder / "record",
    )
    ok("export", folder / "run", tmp_path / "all.jsonl", "--name", "all")
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()[1:]]
    assert len(lines) == 2 * 150 * 7
    assert {each["row"] for each in lines if each["loss"] is None} == set(range(140, 150))


def test_new_queries_walk_no_step_again(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "job")
    run = OpenRun.open(str(tmp_path / "job" / "run"))
    stage = next(stage for stage in run.stages() if stage.startswith("scan/"))
    before = run.receipts(stage)
    shutil.rmtree(tmp_path / "job" / "record" / "moments")
    ok(
        "score",
        run.url,
        "--name",
        "again",
        "--source",
        "recorded",
        "--record",
        "record",
        "--readout",
        "dense",
    )
    assert run.receipts(stage) == before
    np.testing.assert_array_equal(dense(run.url, "again"), dense(run.url))


def test_a_segment_that_is_lost_or_damaged_is_found_and_made_again(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "job")
    run = OpenRun.open(str(tmp_path / "job" / "run"))
    wanted = dense(run.url)
    stage = next(stage for stage in run.stages() if stage.startswith("scan/"))
    assert sorted(run.receipts(stage)) == [0, 1, 2]
    receipt = run.receipt(stage, 1)
    data = Path(run.url, receipt.path, "embeddings")
    chunk = next(path for path in data.rglob("*") if path.is_file() and path.suffix != ".json")
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    damaged = invoke("verify", run.url, "--full")
    assert damaged.exit_code == 3 and stage in damaged.output
    ok("repair", run.url)
    ok("verify", run.url, "--full")
    np.testing.assert_array_equal(dense(run.url), wanted)
    Path(run.url, "receipts", stage, "00000002.json").unlink()
    lost = invoke("verify", run.url)
    assert lost.exit_code == 3 and stage in lost.output
    ok("repair", run.url)
    np.testing.assert_array_equal(dense(run.url), wanted)


def test_own_ids_as_text_are_rows_of_the_training_set(copy):
    for path in copy.glob("*.npz"):
        arrays = dict(np.load(path))
        own = {"train-0": 0, "train-1": 50, "test": 0}[path.stem]
        np.savez(path, **arrays, name=np.array([f"n{own + i}" for i in range(len(arrays["y"]))]))
    job = (
        (copy / "job.toml")
        .read_text()
        .replace('path = "train-*.npz"', 'path = "train-*.npz"\nid_field = "name"')
    )
    (copy / "job.toml").write_text(job)
    shutil.rmtree(copy / "record")
    train(copy, named="n{}".format)
    ok("run", copy / "job.toml", copy / "run")
    shutil.rmtree(copy / "record")
    train(copy)
    close(dense(copy / "run"), by_hand(copy))


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (torch.optim.Adam, "was trained by Adam"),
        (lambda p, **k: torch.optim.SGD(p, momentum=0.9, **k), "was trained with momentum"),
        (lambda p, **k: torch.optim.SGD(p, maximize=True, **k), "was trained to climb"),
        (
            lambda p, **k: torch.optim.SGD(
                [{"params": [each], "lr": 0.1 * i} for i, each in enumerate(p)], **k
            ),
            "groups of weights",
        ),
        (lambda p, **k: torch.optim.SGD(list(p)[:2], **k), "was not trained, but takes part"),
    ],
)
def test_a_training_that_no_scan_follows_is_refused(copy, optimizer, words):
    shutil.rmtree(copy / "record")
    train(copy, optimizer=optimizer)
    found = invoke("run", copy / "job.toml", copy / "run")
    assert found.exit_code == 2 and words in found.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("score.record=none",), "no recorded training"),
        (("checkpoints=['model.pt']",), "is not what the record"),
        (("checkpoints=['record/weights/00000000.pt']",), "from before its first step"),
        (("checkpoints=['record/final.pt', 'model.pt']",), "2 checkpoints; name one"),
        (("score.scan=walk",), "no scans member is called 'walk'"),
        (("score.scan_options={curvature = 'hessian'}",), "'gauss_newton' or 'fisher'"),
        (("score.scan_options={curvatur = 'fisher'}",), "did you mean 'curvature'?"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(copy, changes, words):
    given = [word for change in changes for word in ("--set", change)]
    said = refused("run", copy / "job.toml", copy / "run", *given)
    assert words in said and said.count("\n") == 1


def test_a_plan_of_it_is_refused(folder):
    assert "plan knows the cost of rows and streamed alone" in refused("plan", folder / "job.toml")


def test_without_a_record_the_option_is_named(folder, tmp_path):
    job = RECORDED.replace('record = "record"\n', "")
    (folder / "bare.toml").write_text(job)
    assert "score.record" in refused("run", folder / "bare.toml", tmp_path / "run")


def test_a_damping_is_of_no_use(folder):
    spec = {"readouts": {"top_k": {}}, "source": {"name": "recorded"}}
    with pytest.raises(InputError, match="solves no curvature"):
        refuse_unfit(OpenRun.open(str(folder / "run")), "test", spec, "none", 0.1)


def test_weights_that_were_changed_since_are_refused(copy):
    path = weights_path(copy / "record", 4)
    torch.save(net().state_dict(), path)
    damaged = invoke("run", copy / "job.toml", copy / "run")
    assert damaged.exit_code == 3 and "is not what was recorded" in damaged.stderr


def test_an_example_that_the_training_set_has_not_is_refused(copy):
    shutil.rmtree(copy / "record")
    train(copy, named=lambda row: row + 20)
    found = invoke("run", copy / "job.toml", copy / "run")
    assert found.exit_code == 2 and "training set of 150 examples" in found.stderr
