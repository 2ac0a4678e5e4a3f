"""`evaluate fidelity`: its reference against a dense float64 solve, and what it says of bytes."""

import json

import numpy as np
import pytest
import torch
from calls import ok, refused
from scipy.stats import spearmanr
from small_job import JOB, dense_scores, write_job
from torch import nn

import streamfluence
from streamfluence.evaluation.fidelity import agreement
from streamfluence.evaluation.pilot.examples import choose_pilot
from streamfluence.evaluation.pilot.reference import reference_scores
from streamfluence.linearised import Linearised
from streamfluence.registry import member, names
from streamfluence.run.session import open_session

CG = member("solvers", "conjugate_gradients")
LIKELIHOODS = {name: member("likelihoods", name) for name in names("likelihoods")}

EXACT = ("--set", "rows.codec=float32", "--set", "rows.bytes=0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("fidelity")
    write_job(path)
    ok("run", path / "job.toml", path / "run", *EXACT)
    ok("run", path / "job.toml", path / "bands", "--bytes", "16")
    return path


# --- the mathematics ------------------------------------------------------------------------


def net_and_batch(likelihood):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    targets = {
        "categorical": torch.tensor([0, 1, 1, 0, 1]),
        "bernoulli": torch.rand(5, 2).double(),
        "gaussian": torch.randn(5, 2).double(),
    }[likelihood]
    return net, (torch.randn(5, 4).double(), targets)


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("name", list(LIKELIHOODS))
def test_products_gradients_and_slopes_are_those_of_dense_matrices(name, at_once):
    net, (x, y) = net_and_batch(name)
    likelihood = LIKELIHOODS[name]()
    weights = list(net.parameters())
    names = [n for n, _ in net.named_parameters()]
    linear = Linearised(
        net, lambda m, b: (m(b[0]), b[1]), lambda pair: likelihood.loss(*pair), names
    )
    linear._at_once = at_once
    matrix, rows = 0, []
    for one in range(5):
        outputs = net(x[one : one + 1])
        columns = [flat(torch.autograd.grad(o, weights, retain_graph=True)) for o in outputs[0]]
        jacobian = torch.stack(columns)
        target = y[one : one + 1]
        hessian = torch.autograd.functional.hessian(
            lambda o, t=target: likelihood.loss(o, t).sum(), outputs.detach()
        )
        matrix = matrix + jacobian.T @ hessian.view(2, 2) @ jacobian
        rows.append(flat(torch.autograd.grad(likelihood.loss(outputs, target).sum(), weights)))
    vectors = torch.randn(3, len(matrix), dtype=torch.float64)
    torch.testing.assert_close(linear.products((x, y), vectors), vectors @ matrix)
    torch.testing.assert_close(linear.slopes((x, y), vectors), vectors @ torch.stack(rows).T)
    assert linear._at_once == at_once  # nothing fell back to the other way
    measured = linear.gradients((x, y), lambda pair: likelihood.loss(*pair))
    torch.testing.assert_close(measured, torch.stack(rows))


def test_agreement_is_scipys_spearman_and_a_count_of_common_rows():
    generator = np.random.default_rng(0)
    reference = generator.normal(size=(30, 4))
    scores = reference + generator.normal(size=(30, 4))
    found = agreement(scores, reference, 5)
    ranks = [spearmanr(*pair).statistic for pair in zip(scores.T, reference.T, strict=True)]
    common = [
        len({*np.argsort(-one)[:5]} & {*np.argsort(-other)[:5]}) / 5
        for one, other in zip(scores.T, reference.T, strict=True)
    ]
    assert found.spearman == pytest.approx(np.mean(ranks))
    assert found.top_overlap == pytest.approx(np.mean(common))
    errors = np.linalg.norm(scores - reference, axis=0) / np.linalg.norm(reference, axis=0)
    assert found.relative_error == pytest.approx(errors.mean())


# --- the reference of a run -----------------------------------------------------------------


@pytest.mark.parametrize("by_layer", [True, False])
def test_reference_scores_are_the_dense_solve_in_float64(folder, by_layer):
    pilot = choose_pilot(open_session(str(folder / "run"), "cpu"), 150, None, 7)
    found = reference_scores(pilot, {"joint": 0.01}, by_layer, True, CG(tolerance=1e-8))
    expected = dense_scores(folder, 0.01, joint=not by_layer)
    np.testing.assert_allclose(
        found.scores, expected, rtol=1e-4, atol=1e-7 * np.abs(expected).max()
    )
    assert found.converged and found.precision == "float64"


def test_each_block_is_damped_by_its_own_value(folder):
    pilot = choose_pilot(open_session(str(folder / "run"), "cpu"), 150, None, 7)
    dampings = {"0": 0.01, "2": 0.3}, {"0": 0.01, "2": 1e12}, {"0": 1e12, "2": 0.3}
    both, first, second = (
        reference_scores(pilot, d, True, True, CG(tolerance=1e-8)).scores for d in dampings
    )
    np.testing.assert_allclose(both, first + second, rtol=1e-5, atol=1e-9)


def test_a_model_that_insists_on_float32_is_solved_in_float32_and_says_so(tmp_path):
    write_job(tmp_path)
    task = tmp_path / "task.py"
    task.write_text(task.read_text().replace('batch["x"]', 'batch["x"].float()'))
    ok("run", tmp_path / "job.toml", tmp_path / "run", *EXACT)
    pilot = choose_pilot(open_session(str(tmp_path / "run"), "cpu"), 150, None, 7)
    found = reference_scores(pilot, {"joint": 0.01}, False, True, CG(tolerance=1e-5))
    assert found.precision == "float32"
    expected = dense_scores(tmp_path, 0.01, joint=True)
    assert np.abs(found.scores - expected).max() < 1e-3 * np.abs(expected).max()


# --- the command ----------------------------------------------------------------------------


def report_of(*arguments):
    return json.loads(ok("evaluate", "fidelity", *arguments, "--json"))


def rows_of(report, reference="by layer"):
    return {row["setting"]: row for row in report["settings"] if row["reference"] == reference}


def test_an_unquantised_run_agrees_with_its_reference_by_layer_but_not_jointly(folder):
    report = report_of(folder / "run", "--sample", 150)
    by_layer, joint = rows_of(report), rows_of(report, "joint")
    for name in ("the run as stored", "the run's settings on the pilot"):
        assert by_layer[name]["spearman"] > 0.999
        assert by_layer[name]["relative_error"] < 1e-2
        assert by_layer[name]["top_10_overlap"] > 0.95
        assert joint[name]["spearman"] < 0.999 < by_layer[name]["spearman"]
        assert by_layer[name]["codec_error"] == 0.0
    assert (report["examples"], report["queries"]) == (150, 7)
    assert "the 150 examples that the run's curvature comes from" in report["reference_sample"]
    assert all(solve["converged"] for solve in report["reference"])


def test_fewer_bytes_agree_less_and_the_codec_error_is_measured(folder):
    report = report_of(folder / "bands", "--sample", 150, "--bytes", "8,64")
    rows = rows_of(report)
    assert rows["8 bytes"]["spearman"] < rows["64 bytes"]["spearman"]
    assert rows["8 bytes"]["relative_error"] > rows["64 bytes"]["relative_error"]
    assert rows["8 bytes"]["codec_error"] > rows["64 bytes"]["codec_error"] > 0
    assert rows["8 bytes"]["codec_energy_kept"] < rows["64 bytes"]["codec_energy_kept"]
    assert rows["the run as stored"]["row_bytes"] <= 16
    stored = streamfluence.open(str(folder / "bands")).scores().compute()
    exact = dense_scores(folder, 0.01)
    ranks = [spearmanr(*pair).statistic for pair in zip(stored.T, exact.T, strict=True)]
    assert rows["the run as stored"]["spearman"] == pytest.approx(np.mean(ranks), abs=5e-3)


def test_each_setting_changes_one_thing_and_is_compared_at_its_own_damping(folder):
    report = report_of(
        *(folder / "run", "--sample", 60, "--queries", 3, "--width", 10),
        *("--curvature", "fisher,identity", "--damping", 0.3),
    )
    rows = rows_of(report)
    assert rows["width 10"]["directions"] == 10
    own = rows["the run's settings on the pilot"]["spearman"]
    assert own > 0.999 and rows["damping 0.3"]["spearman"] > 0.99
    assert rows["curvature fisher"]["spearman"] < own
    assert rows["curvature identity"]["spearman"] < own
    assert {solve["damping"] for solve in report["reference"]} == {"0.01", "0.3"}


def test_a_small_pilot_says_that_the_samples_differ(folder):
    report = report_of(folder / "run", "--sample", 40, "--queries", 3)
    assert (report["examples"], report["queries"]) == (40, 3)
    assert "the run as stored has its curvature from 150" in report["reference_sample"]
    rows = rows_of(report)
    assert rows["the run's settings on the pilot"]["spearman"] > 0.999
    assert (
        rows["the run as stored"]["spearman"] < rows["the run's settings on the pilot"]["spearman"]
    )


def test_a_pilot_leaves_the_run_as_it_was(folder):
    before = sorted(folder.rglob("*"))
    report_of(folder / "run", "--sample", 40)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--sample", 5), "sample of 5 examples is too small"),
        (("--bytes", "0"), "bytes = 0; it must be positive"),
        (("--damping", "-1"), "damping = -1; it must be positive"),
        (("--query-set", "other"), "no query set 'other'"),
        (("--curvature", "hessian"), "hessian"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(folder, options, words):
    assert words in refused("evaluate", "fidelity", folder / "run", *options)


def test_a_bare_loss_has_no_reference(tmp_path):
    write_job(tmp_path)
    task = tmp_path / "task.py"
    bare = task.read_text().replace('likelihood = "categorical"\n', "").split("def forward")[0]
    loss = 'nn.functional.cross_entropy(module(batch["x"]), batch["y"], reduction="none")'
    task.write_text(f"{bare}def loss(module, batch):\n    return {loss}\n")
    ok("run", tmp_path / "job.toml", tmp_path / "run")
    assert "no output Hessian" in refused("evaluate", "fidelity", tmp_path / "run")


def test_a_run_without_curvature_has_no_damping_to_compare_at(tmp_path):
    write_job(tmp_path, job=JOB.replace("damping = 0.01", 'name = "identity"'))
    ok("run", tmp_path / "job.toml", tmp_path / "run")
    assert "no curvature" in refused("evaluate", "fidelity", tmp_path / "run")
