"""`evaluate lds` and `evaluate loo` on a small real job, against training by hand and scipy."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from patience import HANG_SECONDS, wait_until
from retraining_job import outcome, write
from scipy.stats import linregress, spearmanr

import streamfluence
from streamfluence.cli import main
from streamfluence.job_parser import load_job
from streamfluence.run.opened import OpenRun
from streamfluence.run.resolve import open_run
from streamfluence.store import ANYTHING, array_names


def invoke(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def ok(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def evaluate(*arguments):
    return json.loads(ok("evaluate", *arguments, "--executor", "serial", "--json"))


def made(folder, *replaced, **options):
    """Write and run a job; return its run."""
    ok("run", write(folder, *replaced, **options))
    return folder / "run"


def pinned(folder, *replaced):
    """Write a job and pin its run without a sketch or rows, which training does not need."""
    open_run(load_job(write(folder, *replaced)), str(folder / "run"))
    return folder / "run"


def refused(result, *words, code=2):
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    errors = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    for word in words:
        assert word in errors[0], errors[0]


def lds(run, *arguments):
    return invoke("evaluate", "lds", run, "--executor", "serial", *arguments)


def loo(run, *arguments):
    return invoke("evaluate", "loo", run, "--executor", "serial", *arguments)


def truth_of(folder):
    (path,) = folder.glob("truth-*")
    return OpenRun.open(str(path), ANYTHING)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("retraining")
    made(path)
    return path


@pytest.fixture(scope="module")
def judged(folder):
    return evaluate("lds", folder / "run", "--subsets", 6, "--seeds", 2)


def test_lds_is_what_training_by_hand_and_scipy_give(folder, judged):
    scores = streamfluence.open(str(folder / "run")).scores().compute().astype(np.float64)
    store, rows = truth_of(folder), np.arange(60)
    masks, losses = np.zeros((6, 60), bool), np.zeros((2, 6, 5))
    for subset in range(6):
        for seed in range(2):
            receipt = store.receipt(f"subsets/30-0/seed-{seed}", subset)
            kept = np.unpackbits(store.read(receipt, "kept_bits"))[:60].astype(bool)
            assert kept.sum() == 30
            masks[subset] = kept
            losses[seed, subset] = outcome(folder, np.flatnonzero(kept), seed, rows)
            np.testing.assert_allclose(
                store.read(receipt, "outcome"), losses[seed, subset], rtol=1e-5
            )
    mean = losses.mean(0)
    expected = [spearmanr(-(masks @ scores)[:, q], mean[:, q]).statistic for q in range(5)]
    found = [row["lds"] for row in judged["per_query"]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert judged["lds"] == pytest.approx(np.mean(expected), abs=1e-6)
    one = [spearmanr(losses[0, :, q], losses[1, :, q]).statistic for q in range(5)]
    assert judged["one_seed_against_rest"] == pytest.approx(np.mean(one), abs=1e-6)
    assert judged["low"] <= judged["lds"] <= judged["high"]
    assert judged["interval"].startswith("95 %, subsets and queries")


def test_the_result_says_what_was_judged_and_is_committed(folder, judged):
    assert judged["retrained"] == judged["of"] == 12
    assert judged["subsets"] == 6 and judged["kept_examples"] == 30 and judged["examples"] == 60
    assert judged["warnings"] == [] and judged["record"]["damping_rule"] == "given"
    store = truth_of(folder)
    receipt = store.receipt(judged["kept_as"], 0)
    stored = store.read(receipt, "per_query.lds")
    np.testing.assert_array_equal(stored, [row["lds"] for row in judged["per_query"]])
    assert store.read_attributes(receipt)["result"]["lds"] == judged["lds"]
    predicted, outcomes = (store.read(receipt, name) for name in ("predicted", "outcome"))
    assert spearmanr(predicted[:, 0], outcomes[:, 0]).statistic == pytest.approx(stored[0])


def test_another_method_is_judged_by_the_same_truth_without_training(folder, judged):
    ok("run", folder / "job.toml", folder / "other", "--set", "curvature.name=fisher")
    other = evaluate("lds", folder / "other", "--subsets", 6)
    assert other["retrained"] == 0 and other["truth"] == judged["truth"]
    assert other["lds"] != judged["lds"]
    redamped = evaluate("lds", folder / "run", "--subsets", 6, "--damping", 3, "--no-train")
    assert redamped["record"]["damping"] == 3 and redamped["lds"] != judged["lds"]


def test_more_subsets_and_seeds_are_added_to_what_is_there(tmp_path):
    run = made(tmp_path)
    assert evaluate("lds", run, "--subsets", 3, "--seeds", 1)["retrained"] == 3
    assert evaluate("lds", run, "--subsets", 4, "--seeds", 2)["retrained"] == 5
    found = evaluate("lds", run, "--subsets", 50, "--seeds", 2, "--no-train")
    assert found["subsets"] == 4
    one = evaluate("lds", run, "--subsets", 3, "--seeds", 1)
    assert one["ceiling"] is None and one["one_seed_against_rest"] is None


def test_workers_share_the_training(tmp_path):
    run = made(tmp_path)
    for worker, count in (("0/2", 4), ("1/2", 4)):
        found = evaluate("lds", run, "--subsets", 4, "--worker", worker)
        assert found["retrained"] == count and "lds" not in found
    assert evaluate("lds", run, "--subsets", 4)["retrained"] == 0


@pytest.mark.slow
def test_processes_and_serial_train_the_same_bits(tmp_path):
    run = made(tmp_path)
    evaluate("lds", run, "--subsets", 3, "--seeds", 1, "--truth", tmp_path / "serial")
    arguments = ["--subsets", 3, "--seeds", 1, "--truth", tmp_path / "two", "--workers", 2]
    ok("evaluate", "lds", run, *arguments)
    assert_same_outcomes(tmp_path / "serial", tmp_path / "two")


def assert_same_outcomes(a, b):
    one, other = (
        {
            (stage, partition): store.read(receipt, "outcome")
            for stage in store.stages()
            for partition, receipt in store.receipts(stage).items()
            if "outcome" in array_names(receipt) and not stage.startswith("judged/")
        }
        for store in (OpenRun.open(str(a), ANYTHING), OpenRun.open(str(b), ANYTHING))
    )
    assert one.keys() == other.keys() and one
    for key, values in one.items():
        np.testing.assert_array_equal(values, other[key])


def test_loo_is_what_training_by_hand_gives(folder):
    found = evaluate("loo", folder / "run", "--examples", "3,17,40,59", "--seeds", 2)
    scores = streamfluence.open(str(folder / "run")).scores().compute().astype(np.float64)
    rows, actual = np.arange(60), np.zeros((2, 4, 5))
    for seed in range(2):
        whole = outcome(folder, rows, seed, rows)
        for i, row in enumerate((3, 17, 40, 59)):
            actual[seed, i] = outcome(folder, np.delete(rows, row), seed, rows) - whole
    predicted, mean = scores[[3, 17, 40, 59]], actual.mean(0)
    line = linregress(predicted.ravel(), mean.ravel())
    assert found["across_queries"]["slope"] == pytest.approx(line.slope, rel=1e-3)
    assert found["across_queries"]["pearson"] == pytest.approx(line.rvalue, abs=1e-3)
    ranked = [spearmanr(predicted[:, q], mean[:, q]).statistic for q in range(5)]
    assert found["within_queries"]["spearman"] == pytest.approx(np.mean(ranked), abs=1e-6)
    table = found["left_out"]
    assert [row["example"] for row in table] == [3, 17, 40, 59]
    np.testing.assert_allclose([row["predicted"] for row in table], predicted.mean(1), rtol=1e-5)
    np.testing.assert_allclose([row["actual"] for row in table], mean.mean(1), rtol=1e-3)
    error = actual.mean(2).std(0, ddof=1) / np.sqrt(2)
    np.testing.assert_allclose([row["standard_error"] for row in table], error, rtol=1e-2)


def test_groups_are_left_out_together(folder):
    arguments = ["--examples", "1,2,5,7", "--leave", 2, "--query", 3, "--seeds", 2]
    found = evaluate("loo", folder / "run", *arguments)
    scores = streamfluence.open(str(folder / "run")).scores().compute().astype(np.float64)
    rows = np.arange(60)
    assert [row["example"] for row in found["left_out"]] == [[1, 2], [5, 7]]
    assert found["leverage_corrected"] is None
    for row in found["left_out"]:
        without = np.delete(rows, row["example"])
        changes = [
            outcome(folder, without, s, rows)[3] - outcome(folder, rows, s, rows)[3] for s in (0, 1)
        ]
        assert row["actual"] == pytest.approx(np.mean(changes), rel=1e-2, abs=1e-6)
        assert row["predicted"] == pytest.approx(scores[row["example"], 3].sum(), rel=1e-5)


def test_top_takes_the_largest_absolute_scores_of_the_query(folder):
    scores = streamfluence.open(str(folder / "run")).scores().compute()
    found = evaluate("loo", folder / "run", "--top", 3, "--query", 2, "--seeds", 2)
    expected = np.argsort(-np.abs(scores[:, 2]), kind="stable")[:3]
    assert [row["example"] for row in found["left_out"]] == expected.tolist()
    assert found["judged_queries"] == 1


def test_a_longer_random_draw_trains_only_what_is_new(folder):
    few = evaluate("loo", folder / "run", "--random", 2, "--seeds", 2)
    more = evaluate("loo", folder / "run", "--random", 3, "--seeds", 2, "--draw-seed", 0)
    assert more["left_out"][:2] == few["left_out"] and more["retrained"] <= 2


def test_logistic_regression_at_its_optimum_is_predicted_by_influence(tmp_path):
    pytest.importorskip("sklearn")
    sys.path.insert(0, str(Path(__file__).parents[1] / "tools" / "bench"))
    import loo_logistic

    loo_logistic.write_job(tmp_path, 200, 20)
    exact = loo_logistic.ROWS["every coordinate, float32"]
    ok("run", tmp_path / "job.toml", *exact, "--executor", "serial")
    found = evaluate("loo", tmp_path / "run", "--random", 12, "--seeds", 1)
    assert found["across_queries"]["spearman"] > 0.99
    assert found["leverage_corrected"]["across_queries"]["spearman"] > 0.99
    assert found["across_queries"]["slope"] > 1.1  # influence is short by one minus leverage
    assert found["leverage_corrected"]["across_queries"]["slope"] == pytest.approx(1, abs=0.06)


# Trains until as many outcomes are there as a file says, then waits to be stopped.
GATED = """import time
    here = Path(__file__).parent
    while len([*here.glob("truth/receipts/subsets/**/*.json")]) >= int((here / "gate").read_text()):
        time.sleep(0.02)
    torch.manual_seed(seed)"""


@pytest.mark.slow
def test_a_stopped_and_a_killed_evaluation_go_on_where_they_were(tmp_path):
    (tmp_path / "gate").write_text("0")
    run = made(tmp_path, "torch.manual_seed(seed)", GATED)
    arguments = ["--subsets", "4", "--seeds", "2", "--truth", str(tmp_path / "truth")]
    program = [sys.executable, "-m", "streamfluence", "evaluate", "lds", str(run), *arguments]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])

    def trained():
        return len([*tmp_path.glob("truth/receipts/subsets/**/*.json")])

    for number, code, least in ((signal.SIGTERM, 75, 1), (signal.SIGKILL, -9, 4)):
        (tmp_path / "gate").write_text(str(least))
        process = subprocess.Popen(
            [*program, "--executor", "serial"],
            env={**os.environ, "PYTHONPATH": paths},
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda least=least: trained() >= least, process)
        process.send_signal(number)
        assert process.wait(HANG_SECONDS) == code
    (tmp_path / "gate").write_text("1000")
    there = trained()
    assert 4 <= there < 8
    assert evaluate("lds", run, *arguments)["retrained"] == 8 - there
    evaluate("lds", run, *arguments[:4], "--truth", tmp_path / "undisturbed")
    assert_same_outcomes(tmp_path / "truth", tmp_path / "undisturbed")


def test_a_task_without_train_is_refused(tmp_path):
    run = pinned(tmp_path, "def train(", "def other(")
    refused(lds(run), "task.py", "no train(indices, seed)")
    refused(loo(run, "--random", 3), "no train(indices, seed)")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("manual_seed(seed)", "manual_seed(0)", "ignores its seed"),
        ("x[indices], y[indices]", "x[:50], y[:50]", "ignores its indices"),
        ("return module.state_dict()", "return 3", "state_dict or a module, got int"),
        ("return module.state_dict()", "return nn.Linear(1, 1)", "load_state_dict() failed"),
        ("torch.manual_seed(seed)", "1 / 0", "train() failed: ZeroDivisionError"),
        ("def train(indices, seed)", "def train(indices)", "must take (indices, seed)"),
    ],
)
def test_a_trainer_that_cannot_give_a_truth_is_refused_before_the_long_work(
    tmp_path, old, new, words
):
    run = pinned(tmp_path, old, new)
    refused(lds(run, "--subsets", 40, "--worker", "0/1"), words)
    done = list(tmp_path.glob("truth-*/receipts/subsets/*/*/*.json"))
    assert len(done) <= 4


def test_a_trainer_without_chance_is_judged_with_one_seed(tmp_path):
    run = made(tmp_path, "manual_seed(seed)", "manual_seed(0)")
    refused(loo(run, "--random", 3), "--seeds 1")
    assert evaluate("loo", run, "--random", 3, "--seeds", 1)["groups"] == 3


def test_a_trainer_that_is_not_reproducible_is_a_warning(tmp_path):
    run = made(tmp_path, "manual_seed(seed)", "seed()")
    result = lds(run, "--subsets", 3, "--json")
    assert result.exit_code == 0
    assert "warning: task.py: train() on the same examples" in result.stderr
    assert "apart" in json.loads(result.stdout)["warnings"][0]


def test_a_module_may_be_returned_and_prints_do_not_reach_the_result(tmp_path):
    run = made(tmp_path, "return module.state_dict()", "print('epoch 1'); return module")
    assert evaluate("lds", run, "--subsets", 3)["subsets"] == 3


def with_measurement(folder, code):
    """Write a job whose queries are measured by ``code``, a function of outputs and targets."""
    replaced = f"likelihood = 'categorical'\nmeasurements = {{'own': lambda o, t: {code}}}"
    job = write(folder, 'likelihood = "categorical"', replaced)
    named = job.read_text().replace('path = "test.npz"', 'path = "test.npz"\nmeasurement = "own"')
    job.write_text(named)
    return job


def test_queries_that_stay_as_they_are_are_counted_and_not_judged(tmp_path):
    job = with_measurement(tmp_path, "o[:, 0] * (t == 1)")
    zero = int((np.load(tmp_path / "test.npz")["y"] != 1).sum())
    assert 0 < zero < 5
    ok("run", job)
    found = evaluate("lds", tmp_path / "run", "--subsets", 3)
    assert found["constant_queries"] == zero and found["judged_queries"] == 5 - zero


def test_constant_outcomes_alone_are_refused(tmp_path):
    # The first trainings agree, which looks like a trainer that ignores its indices.
    ok("run", with_measurement(tmp_path, "0 * o[:, 0] + 1"))
    refused(lds(tmp_path / "run", "--subsets", 3, "--seeds", 1), "identical outcomes")


def test_one_query_has_an_interval_over_subsets_only(tmp_path):
    write(tmp_path)
    shard = np.load(tmp_path / "test.npz")
    np.savez(tmp_path / "test.npz", x=shard["x"][:1], y=shard["y"][:1])
    ok("run", tmp_path / "job.toml")
    found = evaluate("lds", tmp_path / "run", "--subsets", 4)
    assert found["judged_queries"] == 1 and found["interval"] == "95 %, subsets redrawn"


def test_training_that_diverges_is_refused_with_exit_code_5(tmp_path):
    run = made(tmp_path, "lr=0.5", "lr=1e30")
    refused(lds(run, "--subsets", 3), "diverges", code=5)


def test_examples_without_a_score_count_as_nothing_and_are_counted(tmp_path):
    job = write(tmp_path, "x[indices]", "x.nan_to_num()[indices]")
    shard = dict(np.load(tmp_path / "train-1.npz"))
    shard["x"][20] = np.nan  # row 40
    np.savez(tmp_path / "train-1.npz", **shard)
    ok("run", job, "--set", "rows.max_non_finite=0.1")
    assert evaluate("lds", tmp_path / "run", "--subsets", 3)["examples_without_score"] == 1
    found = evaluate("loo", tmp_path / "run", "--examples", "40,5,6", "--seeds", 2)
    assert found["examples_without_score"] == 1 and found["left_out"][0]["predicted"] == 0
    found = evaluate("loo", tmp_path / "run", "--examples", "5,6", "--seeds", 2, "--no-train")
    assert found["examples_without_score"] == 0 and found["groups"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fraction", 0.001], "keeps 0 of them"),
        (["--fraction", 0.999], "keeps 60 of them"),
        (["--fraction", -1], "some"),
        (["--subsets", 2], "at least 3"),
        (["--queries", "none"], "query sets test"),
        (["--scores", "none"], "no scores 'none'"),
        (["--scores", "test", "--damping", 1], "either --scores or --damping"),
        (["--damping", -1], "must be positive"),
        (["--no-train", "--truth", "nowhere"], "no ground truth at nowhere"),
        (["--no-train", "--fraction", 0.25], "has 0 of 50 subsets"),
    ],
)
def test_lds_that_cannot_be_is_refused(folder, judged, arguments, words):
    refused(lds(folder / "run", *arguments), words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "one of --examples, --top and --random"),
        (["--random", 2, "--top", 2], "one of --examples, --top and --random"),
        (["--examples", "60"], "rows 0 to 59"),
        (["--examples", "3,3"], "differ"),
        (["--examples", "3,4,5", "--leave", 2], "fill groups"),
        (["--random", 61], "the training set has 60"),
        (["--random", 1, "--leave", 60], "some must stay"),
        (["--random", 2, "--query", 5], "queries 0 to 4"),
        (["--examples", "a"], None),
        (["--examples", "2,4", "--no-train", "--draw-seed", 1], "0 of 2 groups"),
    ],
)
def test_loo_that_cannot_be_is_refused(folder, judged, arguments, words):
    result = loo(folder / "run", *arguments)
    if words is None:
        assert result.exit_code == 2 and "not a list of rows" in result.output
    else:
        refused(result, words)


def test_truth_of_another_task_or_other_data_is_refused_by_name(folder, judged, tmp_path):
    run = made(tmp_path, "lr=0.5", "lr=0.4", n=70)
    result = lds(run, "--truth", judged["truth"])
    refused(result, "another task", "another training set", "another query set")
    refused(lds(run, "--truth", folder / "run"), "holds a run and not outcomes of retraining")


def test_a_ground_truth_is_no_run_but_can_be_verified_and_repaired(tmp_path):
    run = made(tmp_path)
    truth = Path(evaluate("lds", run, "--subsets", 3, "--seeds", 1)["truth"])
    refused(invoke("status", truth), "holds outcomes of retraining and not a run")
    ok("verify", truth, "--full")
    damaged = next(truth.glob("parts/subsets/*/seed-0/00000001.*/outcome/c.0"))
    damaged.write_bytes(bytes(damaged.stat().st_size))
    refused(lds(run, "--subsets", 3, "--seeds", 1), "outcome", code=3)
    ok("repair", truth)
    assert evaluate("lds", run, "--subsets", 3, "--seeds", 1)["retrained"] == 1


def test_rows_that_are_missing_are_refused_before_training(tmp_path):
    run = made(tmp_path)
    (run / "receipts" / "collect" / "train" / "0" / "00000001.json").unlink()
    refused(lds(run), "partitions", "missing", code=4)
    assert not list(tmp_path.glob("truth-*"))
