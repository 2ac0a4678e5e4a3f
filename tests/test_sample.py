"""The sample of the sketch: which examples, in which tasks, with how many probes."""

import numpy as np
import pytest
import torch
from small_job import load, write_job

from streamfluence.errors import NonFiniteError
from streamfluence.job_parser import load_job
from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.run.resolve import open_run
from streamfluence.run.sample import sample_rows
from streamfluence.run.session import Session
from streamfluence.sketching import sweep as work
from streamfluence.sketching.sample import sample_batches, sample_tasks


def opened(folder, name, **settings):
    path = str(folder / name)
    open_run(load_job(folder / "job.toml", settings), path)
    return Session(path, "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sample")
    write_job(path)
    return path


def test_the_sample_is_sorted_without_repeats_and_from_the_whole_training_set(folder):
    rows = sample_rows(opened(folder, "some", **{"sketch.examples": 60}))
    assert len(set(rows.tolist())) == 60 and (np.diff(rows) > 0).all()
    assert rows.min() < 15 and rows.max() >= 135
    again = sample_rows(opened(folder, "other", **{"sketch.examples": 60, "sketch.seed": 1}))
    assert not np.array_equal(rows, again)
    everything = sample_rows(opened(folder, "all", **{"sketch.examples": 1000}))
    assert np.array_equal(everything, np.arange(150))


def test_the_tasks_share_the_sample_once_and_ids_name_the_rows_of_their_batch(folder):
    session, seen = opened(folder, "tasks", **{"sketch.examples": 120}), []
    _, x, *_ = load(folder)
    for task in range(sample_tasks(session)):
        for ids, batch in sample_batches(AtCheckpoint(session, 0), task):
            torch.testing.assert_close(batch["x"], x[ids].float())
            seen += ids.tolist()
    assert seen == sample_rows(session).tolist()


def test_examples_without_a_finite_loss_are_left_out_with_their_ids(tmp_path):
    write_job(tmp_path)
    shard = dict(np.load(tmp_path / "train-0.npz"))
    shard["x"][[0, 5]] = np.nan
    np.savez(tmp_path / "train-0.npz", **shard)
    session, (_, x, *_) = opened(tmp_path, "run"), load(tmp_path)
    ids, batch = next(iter(sample_batches(AtCheckpoint(session, 0), 0)))
    assert ids.tolist() == [i for i in range(16) if i not in (0, 5)]
    torch.testing.assert_close(batch["x"], x[ids].float())
    shard["x"][:16] = np.nan
    np.savez(tmp_path / "train-0.npz", **shard)
    with pytest.raises(NonFiniteError, match="rows 0 to 15"):
        next(iter(sample_batches(AtCheckpoint(opened(tmp_path, "all"), 0), 0)))


@pytest.mark.parametrize("width", [10, 60, 100])
def test_probes_are_enough_for_the_width_or_the_most_there_are(folder, width):
    session = opened(folder, f"probes-{width}", **{"projection.width": width})
    count = work.probe_count(session, 33)
    assert count == work.MOST_PROBES or 150 * count >= 20 * width
    assert count == 1 or 150 * (count - 1) < 20 * width
    assert work.probe_count(session, 32) is None
    asked = opened(folder, f"asked-{width}", **{"sketch.probes": 3})
    assert work.probe_count(asked, 3) == 3
    exact = opened(folder, f"exact-{width}", **{"sketch.probes": "exact"})
    assert work.probe_count(exact, 5000) is None


@pytest.mark.parametrize("at_most", [1, 7, 50, 149, 150, 1000])
def test_a_pass_over_fewer_examples_takes_them_evenly_over_the_sample(folder, at_most):
    session, seen = opened(folder, f"thin-{at_most}"), []
    _, x, *_ = load(folder)
    for task in range(sample_tasks(session)):
        for ids, batch in sample_batches(AtCheckpoint(session, 0), task, at_most):
            torch.testing.assert_close(batch["x"], x[ids].float())
            seen += ids.tolist()
    assert len(seen) == min(at_most, 150) and seen == sorted(set(seen))
    gaps = np.diff([*seen, 150])
    assert gaps.max() - gaps.min() <= 1


def test_a_bad_example_alone_in_what_is_left_of_its_batch_is_left_out(tmp_path):
    write_job(tmp_path)
    shard = dict(np.load(tmp_path / "train-0.npz"))
    shard["x"][0] = np.nan
    np.savez(tmp_path / "train-0.npz", **shard)
    session = opened(tmp_path, "run")
    tasks = range(sample_tasks(session))
    seen = [ids for task in tasks for ids, _ in sample_batches(AtCheckpoint(session, 0), task, 10)]
    assert torch.cat(seen).tolist() == list(range(15, 150, 15))
