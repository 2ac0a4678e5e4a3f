"""Scores without rows: whole gradients times directions, against plain autograd in float64."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import invoke, ok, refused
from small_job import JOB as SMALL
from small_job import TASK, _gauss_newton, dense_scores, load, loss_gradients, write_job

import streamfluence
from streamfluence.errors import DamageError
from streamfluence.evaluation.truth.scores import JudgedScores
from streamfluence.layout import prepared_stage, result_stage, score_stage
from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.run.opened import OpenRun
from streamfluence.run.session import open_session
from streamfluence.run.unprojected import Unprojected
from streamfluence.scoring.source import label_scores, open_source
from streamfluence.scoring.sources.base import Wanted
from streamfluence.stages.run import run
from streamfluence.stages.score import score

DIGITS = Path(__file__).parent.parent / "examples" / "digits"
# Few and large: forward mode costs as much for one example as for all.
JOB = SMALL.replace("batch_size = 16", "batch_size = 64").replace("= 32", "= 64")
TIGHT = {"tolerance": 1e-5}
STREAMED = {
    "score.source": "streamed",
    "score.readouts": ["top_k", "dense"],
    "score.solver_options": TIGHT,
    "curvature.blocks": "joint",
    "sketch.probes": "exact",
}
DOUBLE = TASK.replace("return module.eval()", "return module.double().eval()").replace(
    'batch["x"]', 'batch["x"].double()'
)
# No rule for forward mode, and autograd gives exactly what it must.
CUSTOM = TASK.replace(
    "def net():",
    """
class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def net():""",
).replace('module(batch["x"])', 'Doubled.apply(module(batch["x"]) / 2)')


def made(folder, task=TASK, job=JOB, **changes):
    write_job(folder, job=job)
    (folder / "task.py").write_text(task)
    run(folder / "job.toml", str(folder / "run"), STREAMED | changes)
    return OpenRun.open(str(folder / "run"))


def dense(opened, label="test"):
    return streamfluence.open(opened.url).results(label)["dense.scores"].compute()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("streamed")
    made(path)
    return path


@pytest.fixture
def opened(folder):
    return OpenRun.open(str(folder / "run"))


def close(found, wanted, relative=1e-5):
    assert np.abs(found - wanted).max() < relative * np.abs(wanted).max()


# --- products -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def double(tmp_path_factory):
    path = tmp_path_factory.mktemp("double")
    solver = {"score.solver_options": {"tolerance": 1e-12}}
    return path, made(path, DOUBLE, **solver)


@pytest.mark.parametrize("alone", [False, True])
def test_products_are_those_of_autograds_gradients_in_float64(double, alone):
    path, run_ = double
    module, x, y, qx, qy = load(path)
    opened = open_session(run_.url, "cpu")
    net = Unprojected(AtCheckpoint(opened, 0))
    queries, values = net.gradients("test")
    wanted = loss_gradients(module, qx, qy)
    torch.testing.assert_close(queries, wanted, rtol=1e-10, atol=1e-12)
    losses = torch.nn.functional.cross_entropy(module(qx), qy, reduction="none")
    torch.testing.assert_close(values, losses.detach(), rtol=1e-10, atol=1e-12)
    batch = opened.batch(opened.reader("train").read(0, 150))
    slopes = (net.slopes_alone if alone else net.slopes)(batch, queries)
    products = wanted @ loss_gradients(module, x, y).T
    torch.testing.assert_close(slopes, products, rtol=1e-10, atol=1e-10)


def test_directions_are_the_dense_solve_in_float64(double):
    path, run_ = double
    module, x, _, qx, qy = load(path)
    kept = run_.read(run_.receipt(prepared_stage("test"), 0), "directions.0")
    matrix = _gauss_newton(module, x) + 0.01 * torch.eye(53).double()
    wanted = torch.linalg.solve(matrix, loss_gradients(module, qx, qy).T).T
    np.testing.assert_allclose(kept, wanted.numpy(), rtol=1e-8, atol=1e-9)


def test_what_an_example_is_not_alone_is_seen(double):
    _, run_ = double
    opened = open_session(run_.url, "cpu")
    net = Unprojected(AtCheckpoint(opened, 0))
    batch = opened.batch(opened.reader("train").read(0, 8))
    directions = net.gradients("test")[0]
    slopes = net.slopes(batch, directions)
    assert not net.differs(batch, directions, slopes, range(8))
    slopes[2, 5] *= 1 + 1e-5
    assert net.differs(batch, directions, slopes, [5])
    assert not net.differs(batch, directions, slopes, [4])


# --- scores ---------------------------------------------------------------------------------


def test_scores_are_the_dense_formula(folder, opened):
    close(dense(opened), dense_scores(folder, 0.01, joint=True), 1e-4)


@pytest.mark.parametrize(
    ("name", "task", "changes", "formula"),
    [
        ("layer", TASK, {"curvature.blocks": "layer"}, {}),
        ("fisher", TASK, {"curvature.name": "fisher"}, {"joint": True, "fisher": True}),
        ("no forward mode", CUSTOM, {"curvature.name": "fisher"}, {"joint": True, "fisher": True}),
        (
            "lissa",
            TASK,
            {"score.solver": "lissa", "curvature.damping": 0.3},
            {"joint": True, "damping": 0.3},
        ),
        ("alone", TASK, {"model.one_by_one": True}, {"joint": True}),
        ("margin", TASK, {}, {"joint": True, "measurement": "margin"}),
    ],
)
def test_scores_of_other_settings_are_the_dense_formula(tmp_path, name, task, changes, formula):
    job = JOB.replace('"test.npz"', '"test.npz"\nmeasurement = "margin"')
    found = made(tmp_path, task, job if name == "margin" else JOB, **changes)
    close(dense(found), dense_scores(tmp_path, **{"damping": 0.01, **formula}), 1e-3)
    assert found.receipt(prepared_stage("test"), 0).facts["alone"] == [name == "alone"]


def test_scores_of_a_bare_loss_are_those_of_the_empirical_fisher(tmp_path):
    head, _, _ = TASK.partition("def forward")
    head = head.replace('likelihood = "categorical"\n', "")
    loss = """
def loss(module, batch):
    return nn.functional.cross_entropy(module(batch["x"]), batch["y"], reduction="none")
"""
    found = made(tmp_path, head + loss)
    close(dense(found), dense_scores(tmp_path, 0.01, joint=True, fisher=True), 1e-3)


def test_scores_without_a_curvature_are_products_of_gradients(tmp_path):
    found = made(tmp_path, **{"curvature.name": "identity"})
    module, x, y, qx, qy = load(tmp_path)
    products = loss_gradients(module, x, y) @ loss_gradients(module, qx, qy).T / 150
    close(dense(found), products.numpy(), 1e-5)
    assert found.receipt(prepared_stage("test"), 0).facts["steps"] == [0]


def test_scores_of_checkpoints_are_summed_by_their_weights(tmp_path):
    write_job(tmp_path, job=JOB)
    write_job(tmp_path / "other", seed=1)
    torch.save(torch.load(tmp_path / "other" / "model.pt", weights_only=True), tmp_path / "2.pt")
    both = {"checkpoints": ["model.pt", "2.pt"], "checkpoint_weights": [0.25, 2.0]}
    run(tmp_path / "job.toml", str(tmp_path / "run"), STREAMED | both)
    first = dense_scores(tmp_path, 0.01, joint=True)
    (tmp_path / "2.pt").replace(tmp_path / "model.pt")
    second = dense_scores(tmp_path, 0.01, joint=True)
    close(dense(OpenRun.open(str(tmp_path / "run"))), 0.25 * first + 2.0 * second, 1e-3)


def test_another_damping_is_another_score_beside_it(folder):
    ok("score", folder / "run", "--source", "streamed", "--damping", 0.3, "--readout", "dense")
    found = dense(OpenRun.open(str(folder / "run")), "test-damping-0.3-streamed")
    close(found, dense_scores(folder, 0.3, joint=True), 1e-2)


@pytest.mark.parametrize("curvature", ["identity", "gauss_newton"])
def test_a_planted_copy_of_each_of_50_queries_is_found_first(tmp_path, curvature):
    """A linear net, and queries along an axis each, which nothing but its copy has much of."""
    net = TASK.replace(
        "nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))", "nn.Linear(60, 3)"
    )
    write_job(tmp_path, job=JOB)
    (tmp_path / "task.py").write_text(net)
    torch.manual_seed(0)
    torch.save(torch.nn.Linear(60, 3).state_dict(), tmp_path / "model.pt")
    random = np.random.default_rng(0)
    x, y = 0.1 * random.normal(size=(100, 60)).astype(np.float32), random.integers(0, 3, 150)
    queries = {"x": 5 * np.eye(60, dtype=np.float32)[:50], "y": y[:50].copy()}
    places = np.sort(random.choice(150, 50, replace=False))
    whole = np.empty((150, 60), np.float32)
    whole[places], whole[np.setdiff1d(np.arange(150), places)] = queries["x"], x
    y[places] = queries["y"]
    np.savez(tmp_path / "test.npz", **queries)
    for shard, part in enumerate((slice(0, 70), slice(70, 150))):
        np.savez(tmp_path / f"train-{shard}.npz", x=whole[part], y=y[part])
    changes = {"score.readouts": "auto", "curvature.name": curvature}
    run(tmp_path / "job.toml", str(tmp_path / "run"), STREAMED | changes)
    found = streamfluence.open(str(tmp_path / "run")).results("test")["top_k.positive_rows"]
    assert found[:, 0].tolist() == places.tolist()


# --- the law --------------------------------------------------------------------------------


@pytest.mark.parametrize("block_rows", [7, 64, 1000])
def test_scores_are_the_same_for_any_cut_into_blocks(opened, block_rows):
    source = open_source(opened, "cpu", "test", opened.read_document("scores/test/score.json"))
    blocks = list(source.blocks(Wanted(range(3), ("scores", "columns"), (0, 7), block_rows)))
    assert [b.start for b in blocks][:3] == [0, min(block_rows, 64), min(2 * block_rows, 128)]
    assert max(len(b.scores) for b in blocks) <= block_rows
    assert np.array_equal(np.concatenate([b.scores for b in blocks]), dense(opened))


def test_scores_are_the_same_for_any_cut_into_partitions_and_on_any_executor(folder, tmp_path):
    other = made(
        tmp_path,
        **{
            "compute.partition_examples": 128,
            "compute.executor": "processes",
            "compute.workers": 2,
        },
    )
    assert other.train.partitions == 2
    assert np.array_equal(dense(other), dense(OpenRun.open(str(folder / "run"))))


def test_a_tile_of_queries_has_the_scores_of_all(opened):
    source = open_source(opened, "cpu", "test", opened.read_document("scores/test/score.json"))
    tile = np.concatenate([b.scores for b in source.blocks(Wanted([0], ("scores",), (3, 5)))])
    close(tile, dense(opened)[:64, 3:5], 1e-6)


# --- a run without rows ---------------------------------------------------------------------


def test_no_row_is_stored_and_the_run_is_complete_and_sound(folder, opened):
    assert not [stage for stage in opened.stages() if stage.startswith("collect")]
    assert json.loads(ok("status", folder / "run", "--json"))["complete"]
    ok("verify", folder / "run", "--full")
    assert json.loads(ok("repair", folder / "run", "--json"))["repaired"] == []


def test_lists_know_ids_losses_and_queries_but_no_self_influence(folder):
    module, x, y, qx, qy = load(folder)
    found = json.loads(ok("top", folder / "run", "test/2", "--json"))
    losses = torch.nn.functional.cross_entropy(module(x), y, reduction="none").detach()
    wanted = dense_scores(folder, 0.01, joint=True)[:, 2]
    first = found["helps"][0]
    assert first["row"] == first["id"] == int(np.argmax(wanted))
    assert first["loss"] == pytest.approx(float(losses[first["row"]]), rel=1e-5)
    assert first["self_influence"] is None and first["preview"].startswith("x ")
    of_query = torch.nn.functional.cross_entropy(module(qx), qy, reduction="none")[2].detach()
    assert found["query"]["measurement"] == pytest.approx(float(of_query), rel=1e-5)
    record = found["record"]
    assert record["source"] == "streamed" and record["solver"] == "conjugate_gradients"
    assert 0 < record["solver_residual"] <= 1e-5 and record["codec"]["name"].startswith("none")
    ok("export", folder / "run", folder / "lists.csv", "--name", "test")
    assert "nan" not in (folder / "lists.csv").read_text().lower()


def test_parts_that_are_gone_are_made_again_and_no_others(folder, opened):
    before = dense(opened)
    kept = {part: r.attempt for part, r in opened.receipts(score_stage("test")).items()}
    for stage, part in ((score_stage("test"), 1), (result_stage("test"), 0)):
        opened.discard(stage, part)
    directions = opened.receipt(prepared_stage("test"), 0).attempt
    run(folder / "job.toml", opened.url, STREAMED)
    again = OpenRun.open(opened.url)
    after = {part: r.attempt for part, r in again.receipts(score_stage("test")).items()}
    assert [part for part in kept if kept[part] != after[part]] == [1]
    assert again.receipt(prepared_stage("test"), 0).attempt == directions
    assert np.array_equal(dense(again), before)


def test_scores_of_other_directions_than_are_there_are_refused_and_repaired(tmp_path):
    found = made(tmp_path)
    stage = prepared_stage("test")
    receipt = found.receipt(stage, 0)
    arrays = {name: array * 2 for name, array in found.read_all(receipt).items()}
    found.discard(stage, 0)
    found.commit(stage, 0, arrays, {"score": "test"}, dict(receipt.facts))
    with pytest.raises(DamageError, match="prepared otherwise"):
        dense(OpenRun.open(found.url))
    assert invoke("verify", found.url).exit_code == 3


def test_retraining_is_judged_by_the_scores_that_are_named(opened):
    spec = opened.read_document("scores/test/score.json")
    blocks = [block for _, block in JudgedScores(opened, "test").blocks()]
    assert np.array_equal(np.concatenate(blocks), dense(opened).astype(np.float64))
    assert np.array_equal(label_scores(opened, "test", spec, 2), dense(opened)[128:])


def test_an_example_without_a_finite_score_counts_nowhere(tmp_path):
    write_job(tmp_path)
    shard = dict(np.load(tmp_path / "train-1.npz"))
    shard["x"][7] = np.nan
    np.savez(tmp_path / "train-1.npz", **shard)
    result = invoke(
        "run", tmp_path / "job.toml", tmp_path / "run", "--set", "score.source=streamed"
    )
    assert result.exit_code == 5 and "1 of 150 training examples" in result.stderr
    more = ("--set", "score.source=streamed", "--set", "rows.max_non_finite=0.1")
    ok("run", tmp_path / "job.toml", tmp_path / "more", *more)
    found = OpenRun.open(str(tmp_path / "more"))
    lists = streamfluence.open(found.url).results("test")
    assert (
        57 not in lists["top_k.positive_rows"]
        and np.isfinite(lists["top_k.positive_scores"][:, :9]).all()
    )


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--source", "stramed"], "score.source = 'stramed' is not known"),
        (["--source", "streamed", "--solver", "cg"], "no solvers member is called 'cg'"),
        (["--source", "streamed", "--readout", "self_influence"], "needs self-influence of stored"),
        (["--source", "streamed", "--readout", "outliers"], "needs rows of stored rows"),
        (["--source", "streamed", "--scale", "cosine"], "is made of what is stored with rows"),
    ],
)
def test_what_streamed_scores_cannot_do_is_refused_in_a_sentence(folder, arguments, words):
    assert words in refused("score", folder / "run", *arguments)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"curvature.name": "diagonal"}, "needs products with the curvature"),
        ({"feature.name": "loss"}, "multiplies gradients, but the feature 'loss' is none"),
        ({"score.solver_options": {"steps": 1}}, "was solved to a residual of"),
        ({"score.solver_options": {"stepps": 1}}, "did you mean 'steps'?"),
    ],
)
def test_a_job_that_cannot_be_streamed_is_refused(tmp_path, changes, words):
    write_job(tmp_path)
    base = {"score.source": "streamed", "curvature.blocks": "auto"}
    if "feature.name" in changes:
        (tmp_path / "job.toml").write_text(JOB.replace('blocks = "layer"\ndamping = 0.01', ""))
    with pytest.raises(streamfluence.errors.InputError) as caught:
        run(tmp_path / "job.toml", str(tmp_path / "run"), base | changes)
    assert words in str(caught.value)


def test_rows_are_still_scored_where_they_are(tmp_path):
    """A run that has rows may be streamed as well: the scores lie beside each other."""
    exact = {"rows.codec": "float32", "rows.bytes": 0, "projection.name": "identity"}
    write_job(tmp_path)
    run(tmp_path / "job.toml", str(tmp_path / "run"), {"curvature.blocks": "joint", **exact})
    score(
        str(tmp_path / "run"),
        asked=streamfluence.scoring.asked.Asked(("dense",), source="streamed"),
    )
    found = OpenRun.open(str(tmp_path / "run"))
    rows = streamfluence.open(found.url).scores("test").compute()
    close(dense(found, "test-streamed"), rows, 1e-2)


# --- the digits example ---------------------------------------------------------------------


@pytest.mark.slow
def test_copies_of_50_images_are_nearest_to_their_queries_by_the_command_line(tmp_path):
    """A longer gradient may score more than a copy does, so nearness is judged: scores over lengths."""
    folder = Path(shutil.copytree(DIGITS, tmp_path / "digits"))
    subprocess.run([sys.executable, "train.py"], cwd=folder, check=True, capture_output=True)
    queries = {name: array[:50] for name, array in np.load(folder / "data" / "test.npz").items()}
    queries["label"] = (queries["label"] + 1 + np.arange(50) % 9) % 10
    np.savez(folder / "data" / "test.npz", **queries)
    np.savez(folder / "data" / "train-4.npz", **queries)
    changes = (
        "score.source=streamed",
        "score.solver_options={tolerance=0.03}",
        'score.readouts=["top_k","dense"]',
        "sketch.examples=256",
    )
    ok("run", folder / "job.toml", folder / "run", *(a for c in changes for a in ("--set", c)))
    copies = dense(OpenRun.open(str(folder / "run")))[1437:].astype(np.float64)
    assert copies.shape == (50, 50)
    np.testing.assert_allclose(copies, copies.T, atol=0.05 * np.abs(copies).max())
    lengths = np.sqrt(np.diag(copies))
    assert np.argmax(copies / lengths[:, None] / lengths, axis=0).tolist() == list(range(50))
    first = json.loads(ok("top", folder / "run", "test/7", "--json"))
    assert first["query"]["id"] == int(queries["id"][7]) and first["helps"][0]["id"] is not None
