"""Jobs: defaults, overrides, and one clear sentence for everything that is wrong."""

import json

import pytest

from streamfluence.errors import InputError
from streamfluence.job import Job
from streamfluence.job_parser import load_job
from streamfluence.run.defaults import decisive

MINIMAL = """
task = "task.py"
checkpoints = "model.pt"
[train]
reader = "arrays"
path = "train.npz"
"""


def write(tmp_path, text=MINIMAL):
    path = tmp_path / "job.toml"
    path.write_text(text)
    return path


def test_a_minimal_job_gets_the_documented_defaults(tmp_path):
    job = load_job(write(tmp_path))
    assert isinstance(job, Job)
    assert (job.rows.bytes, job.rows.codec, job.projection.name) == (256, "auto", "auto")
    assert (job.curvature.name, job.curvature.blocks) == ("auto", "auto")
    assert job.checkpoints == ("model.pt",)
    assert job.root == tmp_path.resolve()


def test_overrides_lie_over_the_file(tmp_path):
    job = load_job(
        write(tmp_path), {"rows.bytes": 64, "curvature.damping": 1, "sketch.probes": "exact"}
    )
    assert (job.rows.bytes, job.curvature.damping, job.sketch.probes) == (64, 1.0, "exact")


def test_the_decisive_part_survives_json_and_leaves_out_how_work_is_run(tmp_path):
    one = decisive(load_job(write(tmp_path)))
    other = decisive(load_job(write(tmp_path), {"compute.workers": 7, "compute.memory": "1GiB"}))
    assert json.loads(json.dumps(one)) == one == other
    assert decisive(load_job(write(tmp_path), {"compute.batch_size": 8})) != one


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("rows.byte", 64, "did you mean 'bytes'"),
        ("rows.bytes", "many", "rows.bytes = 'many'; expected a whole number"),
        ("rows.bytes", -1, "must be positive"),
        ("curvature.damping", -0.1, "must be positive"),
        ("curvature.damping", "some", "a number or 'auto'"),
        ("curvature.blocks", "both", "'auto' or 'layer' or 'joint'"),
        ("compute.batch_size", 0, "at least 1"),
        ("compute.partition_examples", 100, "multiple of compute.batch_size"),
        ("compute.precision", "fp8", "'float32' or 'bf16'"),
        ("sketch.examples", True, "a whole number"),
        ("sketch.probes", 0, "at least 1"),
        ("sketch.seed", -1, "0 or more"),
        ("checkpoints", [], "name at least one"),
        ("checkpoint_weights", [float("nan")], "must be finite"),
        ("checkpoint_weights", [0.0], "are all 0"),
        ("curvature.weight_decay", 1e308, "larger than any number of a job"),
        ("curvature.damping", float("inf"), "positive and finite"),
        ("curvature.damping", 0, "must be positive"),
        ("curvature.weight_decay", -1e-3, "0 or more"),
        ("curvature.learning_rate", 0.1, "steps belong together"),
        ("curvature.steps", 10, "steps belong together"),
        ("curvature.momentum", 1.0, "below 1"),
        ("queries.train", {"reader": "arrays"}, "not the name 'train'"),
        ("queries.a b", {"reader": "arrays"}, "use letters"),
        ("rows", 3, "must be a table"),
    ],
)
def test_a_wrong_value_is_one_clear_sentence(tmp_path, key, value, words):
    with pytest.raises(InputError, match=words):
        load_job(write(tmp_path), {key: value})


@pytest.mark.parametrize(
    ("rate", "steps", "words"),
    [(0.0, 10, "learning_rate = 0"), (-1.0, 10, "must be positive"), (0.1, 0, "at least 1")],
)
def test_a_rate_or_number_of_steps_that_cannot_be_is_refused(tmp_path, rate, steps, words):
    with pytest.raises(InputError, match=words):
        load_job(write(tmp_path), {"curvature.learning_rate": rate, "curvature.steps": steps})


def test_a_missing_file_wrong_toml_and_missing_keys_are_told(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_job(tmp_path / "none.toml")
    with pytest.raises(InputError, match="not valid TOML"):
        load_job(write(tmp_path, "task = "))
    with pytest.raises(InputError, match="lacks 'task', 'checkpoints'"):
        load_job(write(tmp_path, "[train]\nreader = 'arrays'"))
