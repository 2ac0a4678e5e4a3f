"""What streamed scores cost, as ``plan`` tells it before: against the run itself, counted as it works."""

import numpy as np
import pytest
from calls import refused
from small_job import JOB as SMALL
from small_job import write_job

from streamfluence.run.unprojected import Unprojected
from streamfluence.scoring.sources import _directions
from streamfluence.scoring.sources import streamed as _streamed
from streamfluence.scoring.streamed_cost import Streaming
from streamfluence.stages.plan import plan
from streamfluence.stages.run import run

JOB = SMALL.replace("batch_size = 16", "batch_size = 64").replace("= 32", "= 64")
STREAMED = {"score.source": "streamed", "sketch.probes": "exact"}


def counted(monkeypatch):
    """Count what a run does: products of examples and queries, and readings of the sample."""
    told = {"products": 0, "solver_passes": 0, "passes": 0}
    slopes, product, scored = Unprojected.slopes, Unprojected.product, _streamed.Streamed._scored

    def counted_slopes(self, batch, directions):
        told["products"] += len(directions) * len(batch["x"])
        return slopes(self, batch, directions)

    def counted_product(self, curvature, vectors):
        told["solver_passes"] += 1
        return product(self, curvature, vectors)

    def counted_scores(self, session, span, tile, with_losses):
        told["passes"] += len(span)
        # Products of the proofs before are no scores.
        before = told["products"]
        found = scored(self, session, span, tile, with_losses)
        told["of_scores"] = told.get("of_scores", 0) + told["products"] - before
        return found

    monkeypatch.setattr(Unprojected, "slopes", counted_slopes)
    monkeypatch.setattr(Unprojected, "product", counted_product)
    monkeypatch.setattr(_streamed.Streamed, "_scored", counted_scores)
    return told


def test_plan_foresees_what_streamed_scores_do_and_store(tmp_path, monkeypatch):
    job = write_job(tmp_path, job=JOB)
    told = plan(job, str(tmp_path / "run"), STREAMED)
    did = counted(monkeypatch)
    run(job, str(tmp_path / "run"), STREAMED)
    assert told["products_per_example"] == 7 and told["weights"] == 53
    assert did["of_scores"] == 150 * told["products_per_example"]
    assert did["passes"] == 150 * told["passes"]
    # One system a layer; the solver ends long before it gives up, on the probe as in the run.
    assert told["solver_passes_at_most"] == 2 * (500 + 1)
    assert did["solver_passes"] <= told["solver_passes_at_most"]
    assert 0.5 < did["solver_passes"] / told["solver_passes"] < 2
    assert 0 < told["seconds"] < told["seconds_at_most"]
    sizes = [path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert told["files"] == pytest.approx(len(sizes), rel=0.1)
    assert told["disk_bytes"] == pytest.approx(sum(sizes), rel=0.2)


def test_the_formulas_are_sums_over_checkpoints_sets_and_tiles(monkeypatch):
    monkeypatch.setattr(_streamed, "QUERY_BYTES", 4 * 10 * 100)  # ten queries at a time
    monkeypatch.setattr(_directions, "_GROUP_ENTRIES", 30 * 100)  # thirty solved together
    cost = Streaming(
        queries=(25, 70), checkpoints=2, weights=100, number_bytes=4, one_by_one=False,
        with_losses=True, steps=12, most_steps=90, gradient_seconds=3.0, product_seconds=0.5,
        score_seconds=0.25, loss_seconds=2.0,
    )  # fmt: skip
    passes = solver = products = 0
    directions = scores = 0.0
    for _checkpoint in range(2):
        for queries in (25, 70):
            solver += 12 * len(range(0, queries, 30))
            directions += queries * (3.0 + 12 * 64 * 0.5)
            for start in range(0, queries, 10):
                passes += 1
                tile = len(range(start, min(start + 10, queries)))
                scores += 1000 * (tile * 0.25 + 2.0)
                products += tile
    found = cost.table(examples=1000, sample=64, workers=4)
    assert (found["passes"], found["solver_passes"]) == (passes, solver)
    assert found["products_per_example"] == products
    assert found["seconds"] == pytest.approx(directions + scores / 4)
    assert found["seconds_at_most"] == pytest.approx(
        found["seconds"] + 2 * 95 * (90 - 12) * 64 * 0.5
    )
    assert cost.direction_bytes(25) == np.zeros((25, 100), np.float32).nbytes


def test_a_job_that_cannot_be_streamed_has_no_cost(tmp_path):
    write_job(tmp_path, job=JOB)
    told = ("--set", "score.source=streamed", "--set", "score.readouts=['self_influence']")
    assert "needs self-influence of stored rows" in refused(
        "plan", tmp_path / "job.toml", tmp_path / "run", *told
    )
