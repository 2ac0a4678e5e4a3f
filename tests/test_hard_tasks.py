"""Jobs on which tools of this field gave wrong numbers or none: exact here, by the whole pipeline."""

import numpy as np
import pytest
from hard_tasks import RANDOM, TASKS, expected_scores, write_task

import streamfluence
from streamfluence.errors import CoverageError
from streamfluence.stages.run import run


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Full backward hook")
@pytest.mark.parametrize("name", TASKS)
def test_scores_are_those_of_float64_autograd(tmp_path, name):
    job = write_task(tmp_path, *TASKS[name])
    run(job, str(tmp_path / "run"))
    found = np.asarray(streamfluence.open(str(tmp_path / "run")).scores())
    expected = expected_scores(tmp_path)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_random_model_is_refused_for_that_cause(tmp_path):
    job = write_task(tmp_path, RANDOM, {})
    with pytest.raises(CoverageError, match=r"same batch is run twice.*dropout"):
        run(job, str(tmp_path / "run"))


def test_batches_that_had_to_be_run_one_by_one_are_counted_in_a_warning(tmp_path):
    found = run(write_task(tmp_path, *TASKS["sorted later"]), str(tmp_path / "run"))
    assert any("one example at a time" in doubt for doubt in found["warnings"])


def test_a_job_can_ask_for_one_example_at_a_time(tmp_path):
    job = write_task(tmp_path, *TASKS["weight used later"])
    job.write_text(job.read_text() + "[model]\none_by_one = true\n")
    found = run(job, str(tmp_path / "run"))
    assert not any("one example at a time" in doubt for doubt in found["warnings"])  # announced
    scores, expected = (
        np.asarray(streamfluence.open(str(tmp_path / "run")).scores()),
        expected_scores(tmp_path),
    )
    assert np.abs(scores - expected).max() <= 1e-5 * np.abs(expected).max()
