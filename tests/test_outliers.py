"""The readout outliers on a run, and what readouts prepare: the same for any cut, and never of other rows."""

import os
import shutil

import numpy as np
import pytest
from calls import ok, refused
from small_job import JOB, write_job

import streamfluence
from streamfluence.errors import DamageError, IncompleteError, StreamfluenceError
from streamfluence.execution import Execution
from streamfluence.run.opened import OpenRun
from streamfluence.scoring import prepare as prepared_of
from streamfluence.scoring import stored
from streamfluence.scoring.asked import Asked
from streamfluence.stages.repair import repair
from streamfluence.stages.run import run
from streamfluence.stages.score import score
from streamfluence.stages.verify import verify
from streamfluence.store.documents import seal

SERIAL = Execution(executor="serial")
WANTED = '\n[score]\nreadouts = ["top_k", "outliers"]\n[readouts.outliers]\nk = 9\nsample = 60\n'
MEASURES = ("isolation", "l1", "l2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("outliers")
    write_job(path, job=JOB.replace('["model.pt"]', '["model.pt", "other.pt"]') + WANTED)
    write_job(path / "other", seed=1)
    (path / "other" / "model.pt").rename(path / "other.pt")
    run(path / "job.toml", str(path / "run"))
    return path


@pytest.fixture
def copied(folder, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "run", copy_function=os.link)
    return tmp_path / "run"


def computed(path, name=None):
    found = streamfluence.open(str(path)).results(name)
    found = {key: array for key, array in found.items() if key.startswith("outliers.")}
    return {k: v.compute() if hasattr(v, "compute") else v for k, v in found.items()}


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for key in wanted:
        np.testing.assert_array_equal(found[key], wanted[key], err_msg=key)


def test_outliers_of_a_run_are_those_of_its_decoded_rows(folder):
    ensemble = pytest.importorskip("sklearn.ensemble")
    opened, found = streamfluence.open(str(folder / "run")), computed(folder / "run")
    rows = np.concatenate([opened.rows("train", c).compute() for c in (0, 1)], axis=1)
    np.testing.assert_allclose(found["outliers.l1"], np.abs(rows.astype(float)).sum(1), rtol=1e-6)
    np.testing.assert_allclose(
        found["outliers.l2"], np.linalg.norm(rows.astype(float), axis=1), rtol=1e-6
    )
    store = OpenRun.open(str(folder / "run"))
    spec = store.read_document("scores/test/score.json")
    seen = prepared_of.sample(store, spec, 60)
    np.testing.assert_array_equal(np.concatenate(seen.rows, axis=1), rows[seen.examples])
    forest = ensemble.IsolationForest(n_estimators=100, random_state=seen.seed)
    wanted = -forest.fit(rows[seen.examples]).score_samples(rows)
    np.testing.assert_allclose(found["outliers.isolation"], wanted, rtol=1e-6)
    for measure in MEASURES:
        best = np.argsort(-found[f"outliers.{measure}"], kind="stable")[:9]
        assert found[f"outliers.{measure}_rows"].tolist() == best.tolist()


@pytest.mark.parametrize("size", [16, 48, 160])
def test_outliers_have_the_same_bits_for_any_partitioning(folder, tmp_path, size):
    run(folder / "job.toml", str(tmp_path / "run"), {"compute.partition_examples": size})
    assert_equal(computed(tmp_path / "run"), computed(folder / "run"))


def test_outliers_alone_read_no_scores_and_are_the_same(folder, copied):
    options = {"outliers": {"k": 9, "sample": 60}}
    score(
        str(copied),
        ["test"],
        asked=Asked(["outliers"], options=options),
        name="alone",
        execution=SERIAL,
    )
    assert_equal(computed(copied, "alone"), computed(folder / "run", "test"))


def test_what_was_prepared_may_be_lost_and_is_made_again(folder, copied):
    (copied / "receipts" / "prepared" / "test" / "00000000.json").unlink()
    for call in (lambda: computed(copied), lambda: verify(str(copied))):
        with pytest.raises(StreamfluenceError, match="prepare"):
            call()
    made = repair(str(copied), SERIAL)["repaired"]
    assert [each["stage"] for each in made] == ["prepared/test"]
    verify(str(copied), full=True)
    assert_equal(computed(copied), computed(folder / "run"))


def test_what_was_prepared_for_other_scores_is_refused(folder, copied):
    options = {"outliers": {"k": 9, "sample": 50}}
    score(
        str(copied),
        ["test"],
        asked=Asked(["outliers"], options=options),
        name="other",
        execution=SERIAL,
    )
    for kind in ("receipts/prepared/{}/00000000.json",):
        one, other = (copied / kind.format(name) for name in ("test", "other"))
        content = other.read_bytes()
        one.unlink()
        one.write_bytes(content)
    with pytest.raises(DamageError):
        computed(copied, "test")
    repair(str(copied), SERIAL)
    assert_equal(computed(copied, "test"), computed(folder / "run"))


def test_rows_that_were_replaced_spoil_what_was_prepared_of_them(folder, copied):
    store = OpenRun.open(str(copied))
    receipt = store.receipt("collect/train/0", 1)
    arrays = store.read_all(receipt)
    arrays["scale"] = arrays["scale"] + np.uint16(8)
    store.discard("collect/train/0", 1)
    span = receipt.span
    attributes = store.read_attributes(receipt)
    store.commit("collect/train/0", 1, arrays, attributes, receipt.facts, span=span)
    with pytest.raises(DamageError, match="prepared was made from other rows"):
        computed(copied)
    repair(str(copied), SERIAL)
    verify(str(copied))
    changed, before = computed(copied), computed(folder / "run")
    assert (changed["outliers.l1"] != before["outliers.l1"]).any()


def test_scores_without_what_they_prepared_are_not_begun_to_be_read(copied):
    shutil.rmtree(copied / "receipts" / "prepared")
    with pytest.raises(IncompleteError, match="lack what they prepare"):
        streamfluence.open(str(copied)).top("test/0")


def test_an_option_of_a_readout_is_refused_before_there_is_a_run(folder, tmp_path):
    said = refused(
        "run", folder / "job.toml", tmp_path / "run", "--set", "readouts.outliers.tree=5"
    )
    assert (
        "readout 'outliers' has no option 'tree'; did you mean 'trees'? it knows: k, trees" in said
    )
    assert not (tmp_path / "run").exists()


def test_the_command_score_takes_options_of_readouts(copied):
    ok("score", copied, "--readout", "outliers", "--set", "readouts.outliers.k=4", "--name", "few")
    assert computed(copied, "few")["outliers.l2_rows"].shape == (4,)


@pytest.mark.parametrize(
    ("readout", "wanted"),
    [
        ("self_influence", {"flags", "self_influence", "loss"}),
        ("dense", {"flags", "scale", "rows"}),
        ("outliers", {"flags", "scale", "rows", "self_influence", "loss"}),
    ],
)
def test_only_what_some_readout_needs_is_read_of_the_rows(copied, monkeypatch, readout, wanted):
    read = set()
    real = stored.PartitionRows.blocks

    def blocks(rows, size):
        reader = rows.run.reader
        monkeypatch.setattr(rows.run, "reader", lambda r, n: read.add(n) or reader(r, n))
        return real(rows, size)

    monkeypatch.setattr(stored.PartitionRows, "blocks", blocks)
    score(str(copied), ["test"], asked=Asked([readout]), name="new", execution=SERIAL)
    assert read == wanted


@pytest.fixture(scope="module")
def without_queries(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("none") / "run"
    text = (folder / "job.toml").read_text()
    start, _, rest = text.partition("[queries.test]")
    alone = start + "[curvature]" + rest.partition("[curvature]")[2]
    (folder / "alone.toml").write_text(alone.replace('"top_k", ', '"self_influence", '))
    ok("run", folder / "alone.toml", path, "--executor", "serial")
    return path


def test_what_needs_no_scores_is_read_out_without_any_query(folder, without_queries):
    assert_equal(computed(without_queries), computed(folder / "run"))
    found = streamfluence.open(str(without_queries)).results()
    assert found["self_influence.count"] == 150
    assert set(found["outliers.l2_rows"]) <= set(found["named.train.row"])
    assert len(found["named.queries.row"]) == 0
    assert verify(str(without_queries), full=True)["problems"] == []
    assert streamfluence.open(str(without_queries)).status()["complete"]
    assert "without the readout top_k" in refused("top", without_queries, "0")


def test_scores_of_no_query_may_be_lost_and_are_made_again(folder, without_queries, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(without_queries, path, copy_function=os.link)
    for stage in ("prepared", "scores"):
        (path / "receipts" / stage / "train" / "00000000.json").unlink()
    repair(str(path), SERIAL)
    verify(str(path))
    assert_equal(computed(path), computed(folder / "run"))


def test_a_readout_of_scores_is_refused_without_queries(without_queries):
    said = refused("score", without_queries, "--readout", "top_k", "--name", "new")
    assert "has no query set, whose scores the readout 'top_k' needs; add [queries.NAME]" in said
    said = refused(
        "score", without_queries, "--readout", "outliers", "--damping", 1, "--name", "new"
    )
    assert "damping = 1.0 is of queries" in said


def test_a_document_that_turns_training_rows_into_queries_is_no_scores(copied):
    spec = document_of(copied) | {"queries": "train"}
    (copied / "scores" / "test" / "score.json").unlink()
    (copied / "scores" / "test" / "score.json").write_bytes(seal(spec, indent=2))
    shutil.rmtree(copied / "receipts" / "score")
    shutil.rmtree(copied / "receipts" / "scores")
    with pytest.raises(StreamfluenceError):
        repair(str(copied), SERIAL)
    with pytest.raises(StreamfluenceError):
        computed(copied)


def document_of(path):
    return dict(OpenRun.open(str(path)).read_document("scores/test/score.json"))
