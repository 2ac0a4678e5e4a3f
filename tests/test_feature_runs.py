"""Whole runs of features that need no gradients, against formulas in float64; what scores are called."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import invoke
from small_job import load, write_job
from torch import nn

import streamfluence
from streamfluence.errors import InputError
from streamfluence.evaluation.asked import Trainings
from streamfluence.evaluation.truth.chosen import Chosen
from streamfluence.stages.evaluate.fidelity import evaluate_fidelity
from streamfluence.stages.evaluate.loo import evaluate_loo
from streamfluence.stages.evaluate.sanity import evaluate_sanity
from streamfluence.stages.export import export
from streamfluence.stages.plan import plan
from streamfluence.stages.repair import repair
from streamfluence.stages.run import run

SHARES = {"model.pt": 1.0, "b.pt": 0.5, "c.pt": 0.1}  # of the trained weights: a trajectory
EXACT = {"rows.codec": "float32", "rows.bytes": 0}
LOSS = {"feature.name": "loss", "checkpoints": list(SHARES)}
HIDDEN = {"feature.name": "representation", "feature.options": {"module": "1"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("features")
    job = write_job(path)
    text = job.read_text().replace('[curvature]\nblocks = "layer"\ndamping = 0.01\n', "")
    job.write_text(text)
    state = torch.load(path / "model.pt", weights_only=True)
    for name, share in SHARES.items():
        torch.save({key: share * value for key, value in state.items()}, path / name)
    return path


def made(folder, name, **overrides):
    path = folder / name
    if not path.exists():
        run(folder / "job.toml", str(path), overrides["of"])
    return streamfluence.open(str(path))


def trajectories(folder, measurement="loss"):
    """Return the losses of training examples and queries at every checkpoint, float64."""
    module, x, y, qx, qy = load(folder)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    found = []
    for share in SHARES.values():
        module.load_state_dict({key: share * value for key, value in state.items()})
        train, query = (
            nn.functional.cross_entropy(module(a), b, reduction="none")
            for a, b in ((x, y), (qx, qy))
        )
        if measurement == "margin":
            query = -torch.log(torch.exp(-query) / (1 - torch.exp(-query)))
        found.append((train.detach().numpy(), query.detach().numpy()))
    return tuple(np.stack(part) for part in zip(*found, strict=True))


def hidden(folder):
    module, x, _, qx, _ = load(folder)
    return tuple(module[:2](a).detach().numpy() for a in (x, qx))


def assert_close(found, wanted, tolerance=1e-5):
    assert np.abs(found - wanted).max() < tolerance * np.abs(wanted).max()


def test_scores_of_losses_are_inner_products_of_trajectories(folder):
    train, query = trajectories(folder)
    assert_close(made(folder, "loss", of=LOSS).scores().compute(), train.T @ query / 3)


def test_a_measurement_takes_the_place_of_the_querys_loss(folder):
    train, query = trajectories(folder, "margin")
    found = made(folder, "margin", of=LOSS | {"queries.test.measurement": "margin"})
    assert_close(found.scores().compute(), train.T @ query / 3)
    assert "the query's margin" in found.top("0", k=1)["record"]["meaning"]


@pytest.mark.parametrize("weights", [None, [0.5, 3.0, 1.5]])
def test_centred_trajectories_have_their_mean_over_checkpoints_taken_off(folder, weights):
    train, query = trajectories(folder)
    shares = np.array(weights or [1 / 3] * 3)[:, None]
    centred = [part - (shares * part).sum(0) / shares.sum() for part in (train, query)]
    chosen = {"feature.options": {"centred": True}}
    chosen |= {"checkpoint_weights": weights} if weights else {}
    found = made(folder, f"centred-{weights is None}", of=LOSS | chosen)
    assert_close(found.scores().compute(), (shares * centred[0]).T @ centred[1])
    assert "less its mean over checkpoints" in found.top("0", k=1)["record"]["meaning"]


def test_scores_of_representations_are_their_inner_products(folder):
    rows, queries = hidden(folder)
    found = made(folder, "hidden", of=HIDDEN | EXACT)
    assert_close(found.scores().compute(), rows @ queries.T)
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (rows, queries)]
    assert_close(found.scores(scale="cosine").compute(), unit[0] @ unit[1].T)


def test_the_fisher_of_a_representation_is_its_damped_second_moment(folder):
    rows, queries = hidden(folder)
    chosen = {"curvature.name": "fisher", "curvature.damping": 0.1}
    found = made(folder, "fisher", of=HIDDEN | EXACT | chosen)
    inverse = np.linalg.inv(rows.T @ rows / len(rows) + 0.1 * np.eye(5))
    assert_close(found.scores().compute(), rows @ inverse @ queries.T, 1e-4)
    record = found.top("0", k=1)["record"]
    assert "whitened by the curvature 'fisher'" in record["meaning"]
    assert record["unit"].startswith("none")


@pytest.mark.parametrize("projection", ["gaussian", "rademacher", "sparse_jl", "mask", "factored"])
def test_a_representation_goes_through_every_random_projection(folder, projection):
    rows, queries = hidden(folder)
    chosen = {"projection.name": projection, "projection.width": 5, "rows.codec": "int8"}
    scores = made(folder, projection, of=HIDDEN | chosen).scores().compute()
    assert np.corrcoef(scores.ravel(), (rows @ queries.T).ravel())[0, 1] > 0.5


@pytest.mark.parametrize("name, of", [("loss", LOSS), ("hidden", HIDDEN | EXACT)])
def test_nothing_that_is_said_of_a_similarity_speaks_of_a_prediction(folder, tmp_path, name, of):
    found = made(folder, name, of=of).top("test/0", k=2)
    assert set(found) == {"query", "largest", "smallest", "record"}
    record = found["record"]
    json.dumps(record)
    assert record["feature"] == of["feature.name"] and record["curvature"] == "identity, layer"
    assert "predicts nothing" in record["meaning"] and "example if" not in record["meaning"]
    assert record["warnings"] == [] and "parameters_covered" not in record
    assert not any("gradient" in key for key in record)
    exported = export(str(folder / name), str(tmp_path / "x.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert lines[0]["record"]["meaning"] == record["meaning"] == exported["record"]["meaning"]
    assert {line["side"] for line in lines[1:]} == {"largest", "smallest"}
    printed = invoke("top", str(folder / name), "test/0", "-k", "1")
    assert printed.exit_code == 0 and "helps" not in printed.stdout


@pytest.mark.parametrize("name, of", [("loss", LOSS), ("hidden", HIDDEN | EXACT)])
def test_verify_repair_and_finalise_work_on_such_runs(folder, tmp_path, name, of):
    scores = made(folder, name, of=of).scores().compute()
    copy = tmp_path / "copy"
    shutil.copytree(folder / name, copy)
    assert invoke("verify", str(copy), "--full").exit_code == 0
    for part in (copy / "receipts" / "collect" / "train" / "0").iterdir():
        part.unlink()
    repair(str(copy))
    assert invoke("verify", str(copy), "--full").exit_code == 0
    assert np.array_equal(streamfluence.open(str(copy)).scores().compute(), scores)
    assert invoke("finalise", str(copy)).exit_code == 0


def test_plan_measures_such_a_job(folder):
    found = plan(folder / "job.toml", str(folder / "planned"), HIDDEN)
    assert found["directions"] == 5 and found["examples"] == 150


def test_evaluations_that_are_about_gradients_refuse_and_others_go_on(folder):
    made(folder, "hidden", of=HIDDEN | EXACT)
    path = str(folder / "hidden")
    with pytest.raises(InputError, match="no gradient of weights"):
        evaluate_fidelity(path)
    with pytest.raises(InputError, match="not predicted changes"):
        evaluate_loo(path, Chosen([0]), trainings=Trainings(train=False))
    checks = evaluate_sanity(path, sample=32)["checks"]
    assert {check["verdict"] for check in checks} == {"passed"}, checks


FROZEN = """
import torch
from torch import nn

likelihood = "categorical"


class Packed(nn.Module):
    def __init__(self, state):
        super().__init__()
        for name, value in state.items():
            self.register_buffer(name.replace(".", "_"), value)
        self.inside = nn.Identity()

    def forward(self, x):
        shown = torch.tanh(x @ getattr(self, "0_weight").T + getattr(self, "0_bias"))
        return self.inside(shown) @ getattr(self, "2_weight").T + getattr(self, "2_bias")


def model(checkpoint):
    return Packed(torch.load(checkpoint, weights_only=True)).eval()


def forward(module, batch):
    return module(batch["x"]), batch["y"]
"""


@pytest.mark.parametrize("name, module", [("loss", None), ("representation", "inside")])
def test_a_model_without_trainable_weights_is_measured_as_any_other(folder, name, module):
    (folder / "frozen.py").write_text(FROZEN)
    chosen = {"task": "frozen.py", "feature.name": name, **EXACT}
    if module:
        rows, queries = hidden(folder)
        wanted = rows @ queries.T
        chosen |= {"feature.options": {"module": module}}
    else:
        train, query = trajectories(folder)
        wanted = np.outer(train[0], query[0])
    assert_close(made(folder, f"frozen-{name}", of=chosen).scores().compute(), wanted)
    with pytest.raises(InputError, match=r"a feature.name that needs no gradients"):
        run(folder / "job.toml", str(folder / "no"), {"task": "frozen.py"})
    assert not (folder / "no").exists()


@pytest.mark.parametrize(
    "chosen, words",
    [
        ({"feature.name": "los"}, "no features member is called 'los'"),
        ({"feature.name": "loss", "feature.options": {"centered": True}}, "centered"),
        ({"feature.name": "loss", "feature.options": {"centred": "yes"}}, "must be true or false"),
        ({"feature.name": "representation"}, "module"),
        ({"feature.name": "representation", "feature.options": {"module": 7}}, "must be a string"),
        (HIDDEN | {"feature.options": {"module": "7"}}, "it has: 0, 1, 2"),
        (HIDDEN | {"curvature.name": "gauss_newton"}, "has none; use 'identity'"),
        (HIDDEN | {"curvature.weight_decay": 0.1}, "curvature.weight_decay says how far"),
        (HIDDEN | {"model.exclude": ["0.*"]}, "model.exclude leaves out gradients"),
        (HIDDEN | {"score.scale": "cosin"}, "there are: cosine, none, relative"),
        (
            LOSS | {"feature.options": {"centred": True}, "curvature.name": "fisher"},
            "same measure at every checkpoint",
        ),
        (
            LOSS | {"feature.options": {"centred": True}, "checkpoint_weights": [1.0, -2.0, 1.0]},
            "add up to 0",
        ),
    ],
)
def test_a_job_that_makes_no_sense_is_refused_and_leaves_no_run(folder, chosen, words):
    with pytest.raises(InputError, match=words):
        run(folder / "job.toml", str(folder / "none"), chosen)
    assert not Path(folder / "none").exists()


def test_a_single_checkpoint_has_nothing_to_be_centred_over(folder):
    with pytest.raises(InputError, match="one checkpoint"):
        run(
            folder / "job.toml",
            str(folder / "none"),
            {"feature.name": "loss", "feature.options": {"centred": True}},
        )


def test_bf16_and_one_by_one_give_the_same_representations_up_to_rounding(folder):
    rows, queries = hidden(folder)
    wanted = rows @ queries.T
    for name, how, tolerance in (
        ("half", {"compute.precision": "bf16"}, 0.03),
        ("alone", {"model.one_by_one": True}, 1e-5),
    ):
        assert_close(
            made(folder, name, of=HIDDEN | EXACT | how).scores().compute(), wanted, tolerance
        )
    assert made(folder, "half", of=HIDDEN).top("0")["record"]["precision_cosine"] > 0.99
