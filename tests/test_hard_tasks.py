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
