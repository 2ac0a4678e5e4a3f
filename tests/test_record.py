"""What every result says of itself, and each doubt: raised when it should be, with its fix, once."""

import json

import numpy as np
import pytest
import torch
from calls import done
from small_job import JOB, write_job

import streamfluence
from streamfluence.run.decision import load_codec
from streamfluence.run.doubts import row_doubts, sketch_doubts
from streamfluence.run.manifest import Method, PinnedProjection
from streamfluence.run.opened import OpenRun


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A job with a guessed damping, a NaN example, few probes and half of the net left out."""
    path = tmp_path_factory.mktemp("record")
    write_job(path, job=JOB.replace("damping = 0.01", ""))
    shard = dict(np.load(path / "train-0.npz"))
    shard["x"][3] = np.nan
    np.savez(path / "train-0.npz", **shard)
    return path


@pytest.fixture(scope="module")
def ran(folder):
    options = ("sketch.probes=1", "sketch.examples=100", "rows.max_non_finite=0.1", "rows.bytes=16")
    sets = [word for option in options for word in ("--set", option)]
    return done(
        "run", folder / "job.toml", folder / "run", *sets, "--set", 'model.exclude=["0.bias"]'
    )


# --- the record ------------------------------------------------------------------------------


def test_the_record_says_what_was_stored_covered_and_left_out(folder, ran):
    record = streamfluence.open(str(folder / "run")).top("0", k=1)["record"]
    json.dumps(record)
    assert record["models"] == 1
    assert record["trainable_parameters"] == 6 * 5 + 5 + 5 * 3 + 3
    assert record["parameters_left_out"] == ["0.bias"]
    assert record["parameters_covered"] == pytest.approx(1 - 5 / 53)
    assert 0 < record["gradient_energy_kept"] <= 1
    assert record["damping_rule"] == "1 x the mean eigenvalue of each block's weights"
    assert set(record["damping"]) == {"0", "2"}
    assert (record["examples"], record["non_finite_examples"]) == (150, 1)


def test_the_codec_error_in_the_record_is_that_of_the_stored_rows(folder, ran):
    run = streamfluence.open(str(folder / "run"))
    codec = run.top("0", k=1)["record"]["codec"]
    # The first batch of 16 of every partition of 32, without the row that is not finite.
    assert codec["measured_rows"] == 5 * 16 - 1
    done("run", folder / "job.toml", folder / "floats", *_same("float32", 0))
    stored = run.rows("train").compute()
    rows = streamfluence.open(str(folder / "floats")).rows("train").compute()
    kept, _ = load_codec(OpenRun.open(str(folder / "run")), 0)
    wanted = kept.query(torch.from_numpy(rows)).numpy().astype(float)
    chosen = [i for i in range(150) if i % 32 < 16 and i != 3]
    squares = ((stored - wanted) ** 2).sum(1)[chosen] / (wanted**2).sum(1)[chosen]
    assert codec["measured_error"] == pytest.approx(np.sqrt(squares.mean()), rel=1e-3)
    shares = (wanted**2).sum(1)[chosen] / (rows.astype(float) ** 2).sum(1)[chosen]
    assert codec["measured_energy_kept"] == pytest.approx(shares.mean(), rel=1e-3)


def _same(codec, row_bytes):
    options = ("sketch.probes=1", "sketch.examples=100", "rows.max_non_finite=0.1")
    options += (f"rows.codec={codec}", f"rows.bytes={row_bytes}", 'model.exclude=["0.bias"]')
    return [word for option in options for word in ("--set", option)]


def test_another_damping_when_scoring_changes_the_damping_and_the_effective_dimension(folder, ran):
    before = streamfluence.open(str(folder / "run")).top("test/0", k=1)["record"]
    done("score", folder / "run", "--damping", "1000")
    after = streamfluence.open(str(folder / "run")).top("0", k=1, name="test-damping-1000")[
        "record"
    ]
    assert (after["damping"], after["damping_rule"]) == (1000.0, "given when scoring")
    assert after["effective_dimension"] < 0.1 * before["effective_dimension"]


def test_an_export_and_top_carry_the_warnings(folder, ran, tmp_path):
    wanted = json.loads(done("top", folder / "run", "test/0", "-k", 1, "--json").stdout)["record"]
    assert len(wanted["warnings"]) >= 3
    done("export", folder / "run", tmp_path / "out.csv", "--name", "test")
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert f"# warnings: {json.dumps(wanted['warnings'])}" in lines


# --- the warnings of a command -----------------------------------------------------------------


def test_run_warns_on_stderr_once_and_with_the_fix(ran):
    lines = [line for line in ran.stderr.splitlines() if line.startswith("warning: ")]
    assert len(lines) == len(set(lines)) == 3
    guess, few, bad = lines
    assert "the damping is a guess" in guess and "curvature.weight_decay" in guess
    assert "fewer than 20 a direction; raise sketch.examples or sketch.probes" in few
    assert "1 of 150 training rows were NaN or infinite" in bad and "repair" in bad


@pytest.mark.parametrize("command", [("score",), ("top", "test/0", "-k", "1")])
def test_score_and_top_warn_on_stderr_once(folder, ran, command):
    name, *rest = command
    result = done(name, folder / "run", *rest)
    lines = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert len(lines) == len(set(lines)) == 3


def test_a_sound_job_raises_no_doubt(tmp_path):
    write_job(tmp_path)
    result = done("run", tmp_path / "job.toml", tmp_path / "run")
    assert "warning" not in result.stderr
    assert streamfluence.open(str(tmp_path / "run")).top("0", k=1)["record"]["warnings"] == []


def test_missing_partitions_that_were_allowed_are_a_warning(tmp_path):
    write_job(tmp_path)
    done("run", tmp_path / "job.toml", tmp_path / "run")
    OpenRun.open(str(tmp_path / "run")).discard("collect/train/0", 2)
    result = done("score", tmp_path / "run", "--allow-incomplete", "--name", "part")
    assert "1 of 5 partitions of training rows are missing" in result.stderr


# --- each doubt of the sketch ------------------------------------------------------------------


def doubts(count=10_000, coverage=None, projector="spectral", **changes):
    plan = {
        "curvature": "gauss_newton",
        "couples": True,
        "without_outputs": False,
        "damping_rule": "weight decay 0.001",
        "sample_examples": 4096,
        "vectors": "10 probes an example",
        "vectors_an_example": 10,
        "directions": 1000,
        "projection": {"kept": 0.97},
        "blocks": [
            {"name": "a", "width": 600, "effective_dimension": 100.0},
            {"name": "b", "width": 400, "effective_dimension": 50.0},
        ],
    } | changes
    blocks = coverage or [{"name": "a", "size": 6000}, {"name": "b", "size": 4000}]
    method = Method(projection=PinnedProjection(projector))
    return sketch_doubts(method, count, [plan], [{"blocks": blocks}])


def test_nothing_is_said_of_a_sound_sketch():
    assert doubts() == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"damping_rule": "1 x the mean eigenvalue of each block's weights"}, "weight_decay"),
        ({"without_outputs": True}, "define likelihood"),
        ({"sample_examples": 1999}, "fewer than 20 a direction"),
        (
            {"vectors": "10 exact columns", "sample_examples": 99},
            "fewer than 1 a direction; raise sketch.examples",
        ),
        (
            {"blocks": [{"name": "a", "width": 1000, "effective_dimension": 900.0}]},
            "90% of the directions kept",
        ),
        ({"projection": {"kept": 0.1}}, "only 10% of the gradient energy"),
        (
            {"projector": "principal", "projection": {"kept": 0.9, "kept_beyond": 0.3}},
            "only 30% of whitened loss",
        ),
        (
            {
                "projector": "principal",
                "projection": {"kept": 0.2, "kept_beyond": 0.1, "components_of": 10_000},
            },
            "only 20% of whitened loss",
        ),
    ],
)
def test_each_doubt_is_one_sentence_with_its_fix(changes, words):
    (sentence,) = doubts(**changes)
    assert words in sentence and ";" in sentence


def test_enough_probes_and_exact_columns_of_everything_raise_no_doubt():
    assert doubts(sample_examples=2000) == []
    assert doubts(vectors="10 exact columns", sample_examples=99, count=99) == []
    assert doubts(vectors="10 exact columns", sample_examples=100) == []
    # A curvature that joins no directions knows each from all vectors.
    assert doubts(sample_examples=1999, couples=False) == []


def test_a_block_that_is_kept_whole_cannot_be_too_narrow():
    whole = [{"name": "a", "width": 40, "effective_dimension": 39.0}]
    assert doubts(blocks=whole, coverage=[{"name": "a", "size": 40}]) == []
    assert doubts(blocks=whole, coverage=[{"name": "a", "size": 41}]) != []


def test_the_worst_checkpoint_speaks():
    method = Method(projection=PinnedProjection("spectral"))
    good = {
        "curvature": "gauss_newton",
        "couples": True,
        "without_outputs": False,
        "damping_rule": "given",
        "sample_examples": 10,
        "vectors": "2 exact columns",
        "vectors_an_example": 2,
        "directions": 5,
        "projection": {"kept": 0.95},
        "blocks": [{"name": "a", "width": 5, "effective_dimension": 1.0}],
    }
    cover = {"blocks": [{"name": "a", "size": 50}]}
    bad = good | {"projection": {"kept": 0.2}}
    (sentence,) = sketch_doubts(method, 10, [good, bad], [cover, cover])
    assert "only 20%" in sentence


def test_rows_that_are_bad_or_missing_are_counted():
    counts = {"non_finite": 2, "one_by_one": 0, "rows": 300, "missing": 1, "partitions": 4}
    bad, missing = row_doubts(counts, 0.1)
    assert "2 of 300 training rows" in bad and "1 of 4 partitions" in missing
    assert row_doubts(counts | {"non_finite": 0, "missing": 0}, None) == []


def test_rows_that_storing_changed_much_are_a_doubt():
    counts = {"non_finite": 0, "one_by_one": 0, "rows": 300, "missing": 0, "partitions": 4}
    (sentence,) = row_doubts(counts, 0.7)
    assert "70% off" in sentence and "raise rows.bytes" in sentence
    assert row_doubts(counts, 0.5) == []
