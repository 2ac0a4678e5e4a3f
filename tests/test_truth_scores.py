"""What retraining is compared with: scores and columns of a run, against float64 by hand.

Two checkpoints of unlike weight, so that an exchange of the two shows; partitions and blocks that
end inside each other, so that a row that lands in another's place shows.
"""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from calls import ok
from small_job import dense_scores, load, write_job
from torch import nn

from streamfluence.evaluation.retraining import Subset
from streamfluence.evaluation.truth import scores as _truth_scores
from streamfluence.evaluation.truth.scores import JudgedScores
from streamfluence.run.opened import OpenRun

N, WEIGHTS, DAMPING = 75, (0.3, 1.1), 0.01
EXACT = ["rows.codec=float32", "rows.bytes=0", "sketch.probes=exact", "rows.max_non_finite=0.1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two checkpoints; the folder of each has its model under the name `load` knows."""
    path = tmp_path_factory.mktemp("truth-scores")
    write_job(path, n=N)
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    for checkpoint, name in enumerate(("model.pt", "second.pt")):
        other = path / f"checkpoint-{checkpoint}"
        other.mkdir()
        for file in (*path.glob("train-*.npz"), path / "test.npz"):
            (other / file.name).write_bytes(file.read_bytes())
        if checkpoint:
            torch.save(net.state_dict(), path / name)
        (other / "model.pt").write_bytes((path / name).read_bytes())
    told = [*EXACT, 'checkpoints=["model.pt","second.pt"]', f"checkpoint_weights={[*WEIGHTS]}"]
    ok("run", path / "job.toml", path / "run", *(word for one in told for word in ("--set", one)))
    return path


@pytest.fixture
def scores(folder, monkeypatch):
    monkeypatch.setattr(_truth_scores, "_BLOCK_ROWS", 10)
    return JudgedScores(OpenRun.open(str(folder / "run")), "test")


@pytest.fixture(scope="module")
def dense(folder):
    """The textbook scores of both checkpoints, (example, query)."""
    return sum(
        weight * dense_scores(folder / f"checkpoint-{checkpoint}", DAMPING)
        for checkpoint, weight in enumerate(WEIGHTS)
    )


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, atol=3e-4 * np.abs(expected).max(), rtol=0)


def test_blocks_are_the_textbook_scores_in_the_order_of_examples(dense, scores):
    spans, blocks = zip(*scores.blocks(), strict=True)
    assert [row for span in spans for row in range(span.start, span.stop)] == list(range(N))
    assert {len(block) for block in blocks} == {10, 2, 1}
    assert_close(np.concatenate(blocks), dense)
    assert scores.count == N and not scores.without_score


def test_rows_have_their_scores_in_the_order_asked_for(dense, scores):
    rows = np.array([70, 3, 31, 32, 3, 0, 74])
    assert_close(scores.of_rows(rows), dense[rows])


def test_only_partitions_that_hold_a_row_are_read(scores):
    starts = [span.start for span, _ in scores.blocks(np.array([70, 33]))]
    assert starts == [32, 42, 52, 62, 64, 74]


@pytest.mark.parametrize("queries", [[0], [4, 2], list(range(7))])
def test_the_largest_are_those_of_a_sort_of_the_dense_answer(dense, scores, queries):
    sums = np.abs(dense[:, queries]).sum(axis=1)
    assert scores.largest(9, np.array(queries)).tolist() == np.argsort(-sums)[:9].tolist()


def test_a_subset_is_predicted_at_minus_the_sum_of_what_it_keeps(dense, scores):
    masks = np.random.default_rng(0).random((4, N)) < 0.4
    subsets = [Subset(30, 0, number) for number in range(4)]
    truth = SimpleNamespace(kept=lambda subset, a, b: masks[subset.number, a:b])
    expected = [[-sum(dense[masks[s], q]) for q in range(7)] for s in range(4)]
    assert_close(scores.subset_effects(truth, subsets), np.array(expected))


def test_columns_of_rows_are_in_the_unit_of_scores_and_of_the_loss(folder, scores):
    """Self-influence carries the weights of the checkpoints and 1/n; the loss is a plain mean."""
    rows = np.array([70, 3, 31, 32, 3, 0, 74])
    own, losses = np.zeros(N), np.zeros(N)
    for checkpoint, weight in enumerate(WEIGHTS):
        place = folder / f"checkpoint-{checkpoint}"
        module, x, y, _, _ = load(place)
        own += weight * np.diag(dense_scores(with_queries(place, x, y), DAMPING))
        losses += nn.functional.cross_entropy(module(x), y, reduction="none").detach().numpy() / 2
    assert_close(scores.column("self_influence", rows), own[rows])
    assert_close(scores.column("loss", rows), losses[rows])


def with_queries(place, x, y):
    """Return a copy of a checkpoint's folder with other queries."""
    copy = place.with_name(f"{place.name}-with-queries")
    shutil.copytree(place, copy)
    np.savez(copy / "test.npz", x=x.numpy().astype(np.float32), y=y.numpy())
    return copy


def test_rows_without_a_score_count_as_nothing_and_are_named(folder, tmp_path, monkeypatch):
    write_job(tmp_path, n=N)
    shard = dict(np.load(tmp_path / "train-1.npz"))
    shard["x"][20] = np.nan  # row 45
    np.savez(tmp_path / "train-1.npz", **shard)
    ok("run", tmp_path / "job.toml", "--set", "rows.max_non_finite=0.1")
    monkeypatch.setattr(_truth_scores, "_BLOCK_ROWS", 10)
    scores = JudgedScores(OpenRun.open(str(tmp_path / "run")), "test")
    rows = np.array([46, 45, 44])
    found = scores.of_rows(rows)
    assert scores.without_score == {45}
    assert not found[1].any() and found[0].any() and found[2].any()
