"""Rows and queries come in one set of coordinates, and no more queries are held at once than fit."""

import numpy as np
import pytest
from small_job import JOB, write_job

import streamfluence
from streamfluence.errors import InputError
from streamfluence.registry import names
from streamfluence.run.opened import OpenRun
from streamfluence.scoring import queries as _queries
from streamfluence.scoring.asked import Asked
from streamfluence.stages.evaluate.retrieval import evaluate_retrieval
from streamfluence.stages.run import run
from streamfluence.stages.score import score

N = 96
PLANS = [("spectral", codec) for codec in sorted(set(names("codecs")) - {"base"})] + [
    (projection, "bands") for projection in sorted(set(names("projections")) - {"base", "spectral"})
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_job(folder, n=N, n_queries=70)
    write_job(folder / "second", n=N, n_queries=70, seed=1)
    (folder / "second" / "model.pt").rename(folder / "second.pt")
    return folder


def made(data, target, projection, codec, extra=None):
    job = JOB.replace('["model.pt"]', '["model.pt", "second.pt"]\ncheckpoint_weights = [0.25, 0.5]')
    if projection == "principal":
        job = job.replace('blocks = "layer"', 'blocks = "joint"')
    (data / f"{target.name}.toml").write_text(job)
    options = {"projection.name": projection, "rows.codec": codec, "sketch.examples": N}
    options |= {"rows.bytes": 24 if codec == "bands" else 0}
    if projection == "mask":
        options["projection.options"] = {"file": "mask.npz"}
    run(data / f"{target.name}.toml", str(target), options | (extra or {}))
    return streamfluence.open(str(target))


@pytest.mark.parametrize(("projection", "codec"), PLANS)
def test_products_of_rows_and_queries_are_the_scores_times_n(data, tmp_path, projection, codec):
    if projection == "mask":
        pytest.skip("needs a mask of its own; its rows go the same way")
    opened = made(data, tmp_path / f"{projection}-{codec}", projection, codec)
    total = np.zeros((N, 70))
    for checkpoint, weight in enumerate((0.25, 0.5)):
        rows = opened.rows("train", checkpoint).compute().astype(np.float64)
        queries = opened.rows("test", checkpoint).compute().astype(np.float64)
        assert rows.shape[1] == queries.shape[1] and len(queries) == 70
        total += weight * rows @ queries.T
    scores = opened.scores().compute()
    np.testing.assert_allclose(total / N, scores, rtol=1e-4, atol=1e-5 * np.abs(scores).max())


def test_a_checkpoint_that_is_not_there_is_refused(data, tmp_path):
    opened = made(data, tmp_path / "run", "identity", "float32")
    for checkpoint in (2, -1):
        with pytest.raises(InputError, match="has 0 to 1"):
            opened.rows("train", checkpoint)


def test_queries_are_held_a_tile_at_a_time(data, tmp_path, monkeypatch):
    opened = made(data, tmp_path / "run", "spectral", "bands")
    lazy = opened.scores()
    assert lazy.numblocks == (3, 1)
    dense = lazy.compute()
    held, read = [], _queries.query_rows

    def watched(rows, tile=None):
        found = read(rows, tile)
        held.append(len(found))
        return found

    monkeypatch.setattr(_queries, "query_rows", watched)
    monkeypatch.setattr(_queries, "QUERY_BYTES", 1)  # the least there is: 64 queries
    tiled = opened.scores()
    assert tiled.numblocks == (3, 2)
    # Products of fewer queries may round otherwise.
    np.testing.assert_allclose(tiled.compute(), dense, rtol=1e-4, atol=1e-6)
    one = _queries.Queries(OpenRun.open(opened.path), "test").scores(1)
    np.testing.assert_array_equal(one, tiled[32:64].compute())
    assert max(held) <= 64


def test_retrieval_is_the_same_for_any_tiles(data, tmp_path, monkeypatch):
    opened = made(data, tmp_path / "run", "spectral", "bands")
    relevant = tmp_path / "relevant.json"
    relevant.write_text(
        str({str(q): [q % N, (7 * q + 3) % N] for q in (69, 3, 64, 12)}).replace("'", '"')
    )
    whole = evaluate_retrieval(opened.path, str(relevant), ks=[1, 5])
    held, read = [], _queries.query_rows

    def watched(rows, tile=None):
        found = read(rows, tile)
        held.append(len(found))
        return found

    monkeypatch.setattr(_queries, "query_rows", watched)
    monkeypatch.setattr(_queries, "QUERY_BYTES", 1)
    tiled = evaluate_retrieval(opened.path, str(relevant), ks=[1, 5])
    assert tiled == whole and max(held) <= 64
    scores = opened.scores().compute()
    ranks = []
    for query in (69, 3, 64, 12):
        order = np.argsort(-scores[:, query], kind="stable")
        wanted = {query % N, (7 * query + 3) % N}
        ranks.append(1 / (1 + next(i for i, row in enumerate(order) if row in wanted)))
    assert tiled["figures"][-1]["value"] == pytest.approx(np.mean(ranks))


def test_scores_of_a_part_of_the_rows_keep_the_others_out(data, tmp_path):
    opened = made(data, tmp_path / "run", "spectral", "float32")
    (tmp_path / "run/receipts/collect/train/1/00000001.json").unlink()
    made_of = score(
        opened.path, ["test"], name="part", asked=Asked(["dense"]), allow_incomplete=True
    )
    assert made_of["scores"][0]["missing_partitions"] == [1]
    found = opened.results("part")["dense.scores"].compute()
    assert len(found) == N - 32
