"""The commands on a real small job, as a user or a scheduler would call them."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import zarr
from calls import invoke, ok, refused
from small_job import write_job

import streamfluence
from streamfluence.job_parser import load_job
from streamfluence.layout import collect_stage
from streamfluence.run.opened import OpenRun
from streamfluence.scoring import queries as _queries
from streamfluence.scoring import spec as score_spec
from streamfluence.scoring.asked import Asked
from streamfluence.store import RunStore
from streamfluence.task_file import load_task


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("commands")
    write_job(path)
    ok("run", path / "job.toml")
    return path


def test_init_writes_through_no_link(tmp_path):
    folder, victim = tmp_path / "new", tmp_path / "victim"
    folder.mkdir()
    (folder / "job.toml").symlink_to(victim)
    assert "job.toml exists already" in refused("init", folder)
    assert not victim.exists() and len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("kind", ["dangling", "in a file", "long"])
def test_init_wants_a_folder_that_it_can_make(tmp_path, kind):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "victim")
    path = {"in a file": tmp_path / "file" / "x", "long": tmp_path / ("a" * 300)}.get(
        kind, tmp_path / kind
    )
    assert refused("init", path)
    assert not (tmp_path / "victim").exists()


def test_status_of_a_finished_run_is_complete(folder):
    found = json.loads(ok("status", folder / "run", "--json"))
    assert found["complete"]
    assert [(s["set"], s["done"], s["of"]) for s in found["sets"]] == [
        ("train", 5, 5),
        ("test", 1, 1),
    ]


def test_plan_measures_and_writes_nothing(folder):
    found = json.loads(ok("plan", folder / "job.toml", folder / "elsewhere", "--json"))
    assert not (folder / "elsewhere").exists()
    assert found["examples"] == 150 and found["partitions"] == 5 and found["passes"] == 1
    assert found["row_bytes"] <= 256
    assert found["disk_bytes"] > 150 * found["row_bytes"]
    assert found["peak_bytes"] > 50 << 20 and found["seconds"] > 0


def test_plan_foresees_the_files_and_bytes_of_the_run(tmp_path):
    write_job(tmp_path, n=400)
    told = json.loads(ok("plan", tmp_path / "job.toml", "--json"))
    ok("run", tmp_path / "job.toml")
    sizes = [path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert told["files"] == pytest.approx(len(sizes), rel=0.1)
    assert told["disk_bytes"] == pytest.approx(sum(sizes), rel=0.15)


def test_plan_refuses_what_does_not_fit_in_memory(folder):
    result = invoke("plan", folder / "job.toml", folder / "elsewhere", "--memory", "20MiB")
    assert result.exit_code == 2
    assert "--memory allows 20 MiB" in result.output


def test_workers_share_the_partitions_and_together_finish_the_run(folder, tmp_path):
    write_job(tmp_path)
    job = tmp_path / "job.toml"
    ok("run", job, tmp_path / "whole")
    store = RunStore.create(
        str(tmp_path / "shared"), OpenRun.open(str(tmp_path / "whole")).manifest
    )
    whole = OpenRun.open(str(tmp_path / "whole"))
    for document in ("data/train/000000.json", "data/test/000000.json", "place.json"):
        store.create_document(document, whole.read_document(document))
    ok("sketch", tmp_path / "shared", "--executor", "serial")
    for worker in ("0/2", "1/2"):
        ok("collect", tmp_path / "shared", "--worker", worker, "--executor", "serial")
        first = sorted(store.receipts(collect_stage("train", 0)))
        assert first == ([0, 2, 4] if worker == "0/2" else [0, 1, 2, 3, 4])
    whole = OpenRun.open(str(tmp_path / "whole"))
    for partition, receipt in store.receipts(collect_stage("train", 0)).items():
        other = whole.receipt(collect_stage("train", 0), partition)
        assert np.array_equal(store.read(receipt, "rows"), whole.read(other, "rows"))


def test_one_partition_can_be_collected_alone(folder):
    store = OpenRun.open(str(folder / "run"))
    store.discard(collect_stage("train", 0), 3)
    for partition, expected in ((2, 0), (3, 1), (3, 0)):
        told = json.loads(ok("collect", folder / "run", "--partition", partition, "--json"))
        assert told["collected"] == expected
    assert "0 to 4" in invoke("collect", folder / "run", "--partition", 9).output


def test_top_prints_both_lists_and_the_sign(folder):
    shown = ok("top", folder / "run", "test/0", "-k", 2)
    assert "helps" in shown and "hurts" in shown and "positive" in shown


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_export_writes_every_listed_example_and_says_what_the_numbers_are(folder, ending):
    output = folder / f"out.{ending}"
    ok("export", folder / "run", output)
    scores = streamfluence.open(str(folder / "run")).scores().compute()
    if ending == "csv":
        text = output.read_text().splitlines()
        assert any("positive: the example helps" in line for line in text if line.startswith("#"))
        lines = list(csv.DictReader(line for line in text if not line.startswith("#")))
    elif ending == "jsonl":
        header, *lines = [json.loads(line) for line in output.read_text().splitlines()]
        assert "positive: the example helps" in header["record"]["meaning"]
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        table = parquet.read_table(output)
        assert "positive: the example helps" in table.schema.metadata[b"streamfluence"].decode()
        lines = table.to_pylist()
    assert len(lines) == 2 * 7 * 100  # both sides, seven queries, score.top_k
    for line in lines[:50]:
        expected = scores[int(line["row"]), int(line["query"])]
        np.testing.assert_allclose(float(line["score"]), expected, rtol=1e-6)
    assert "exists already" in invoke("export", folder / "run", output).output


def test_finalise_gives_one_array_that_plain_zarr_reads(folder):
    path = json.loads(ok("finalise", folder / "run", "--json"))["path"]
    group = zarr.open_group(folder / "run" / path if not path.startswith("/") else path, mode="r")
    store = OpenRun.open(str(folder / "run"))
    receipts = store.receipts(collect_stage("train", 0))
    rows = np.concatenate([store.read(receipts[p], "rows") for p in sorted(receipts)])
    assert np.array_equal(group["rows"][0], rows)


def test_scores_of_another_damping_get_a_name_of_their_own(folder):
    found = json.loads(ok("score", folder / "run", "--damping", "0.5", "--json"))
    assert found["scores"][0]["name"] == "test-damping-0.5"
    ok("top", folder / "run", "test-damping-0.5/0")
    assert "name one" in invoke("top", folder / "run", "0").output


def test_every_readout_is_stored_and_agrees_with_the_dense_scores(folder):
    subsets = {"first": list(range(10)), "odd": list(range(1, 150, 2))}
    (folder / "subsets.json").write_text(json.dumps(subsets))
    store = OpenRun.open(str(folder / "run"))
    from streamfluence.stages.score import score

    readouts = ["top_k", "self_influence", "aggregate", "subset_sum", "dense"]
    score(str(folder / "run"), ["test"], asked=Asked(readouts, subsets="subsets.json"), name="all")
    scores = streamfluence.open(str(folder / "run")).scores("test").compute()
    sums = store.read(store.receipt("scores/all", 0), "subset_sum.subset_sums")
    for number, rows in enumerate(subsets.values()):
        np.testing.assert_allclose(sums[number], scores[rows].sum(0), rtol=1e-4, atol=1e-9)
    parts = store.receipts("score/all")
    stored = np.concatenate([store.read(parts[p], "example.dense.scores") for p in sorted(parts)])
    np.testing.assert_array_equal(stored, scores)


def test_queries_as_a_lazy_array_reproduce_the_scores(folder):
    run = streamfluence.open(str(folder / "run"))
    rows = run.rows("train")
    assert rows.shape[0] == 150 and rows.dtype == "float32"
    assert rows.numblocks[0] == 5
    assert np.isfinite(rows.compute()).all()
    assert run.rows("test").shape[0] == 7


def test_scores_of_a_subsets_file_that_changed_are_not_mixed(folder):
    subsets = folder / "changing.json"
    subsets.write_text(json.dumps({"first": [0, 1]}))
    arguments = ("score", folder / "run", "--readout", "subset_sum", "--subsets", subsets.name)
    ok(*arguments, "--name", "pinned")
    subsets.write_text(json.dumps({"first": [0, 2]}))
    again = invoke(*arguments, "--name", "pinned")
    assert again.exit_code == 2 and "sha256" in again.output
    ok(*arguments, "--name", "anew")


def test_init_writes_an_example_and_never_overwrites(tmp_path):
    ok("init", tmp_path / "new", "--example", "digits")
    assert (tmp_path / "new" / "job.toml").exists()
    assert "exists already" in invoke("init", tmp_path / "new", "--example", "digits").output
    assert "digits, code" in invoke("init", tmp_path / "other", "--example", "cats").output


def test_the_skeleton_works_as_it_is_written(tmp_path):
    ok("init", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.toml", "task.py"]
    subprocess.run([sys.executable, tmp_path / "task.py"], check=True)
    ok("run", tmp_path / "job.toml", "--executor", "serial")
    found = json.loads(ok("top", tmp_path / "run", "test/0", "-k", "2", "--json"))
    assert found["record"]["damping_rule"].startswith("weight decay 0.001 + early stopping")
    assert found["helps"][0]["score"] > 0 > found["hurts"][0]["score"]
    assert not found["record"]["missing_partitions"]


@pytest.mark.parametrize("example", ["digits", "code"])
def test_an_example_brings_its_task_its_training_and_a_job_that_is_valid(tmp_path, example):
    ok("init", tmp_path, "--example", example)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.toml", "task.py", "train.py"]
    job = load_job(tmp_path / "job.toml")
    assert load_task(job.task, job.root).train is not None and job.queries


def test_queries_that_do_not_fit_in_memory_are_scored_in_tiles_with_the_same_result(
    tmp_path, monkeypatch
):
    write_job(tmp_path, n_queries=150)
    for shard in (0, 1):
        fields = dict(np.load(tmp_path / f"train-{shard}.npz"))
        np.savez(tmp_path / f"train-{shard}.npz", **fields, author=np.arange(len(fields["y"])) % 3)
    grouped = ["--set", "train.group_field=author", "--set", 'train.fields=["x", "y"]']
    ok("run", tmp_path / "job.toml", *grouped)
    (tmp_path / "subsets.json").write_text(json.dumps({"first": list(range(10))}))
    chosen = ["top_k", "self_influence", "aggregate", "subset_sum", "dense"]
    asked = [word for readout in chosen for word in ("--readout", readout)]
    asked += ["--subsets", "subsets.json", "--executor", "serial"]
    ok("score", tmp_path / "run", *asked, "--name", "whole")
    found = streamfluence.open(str(tmp_path / "run")).results("whole")
    scores = streamfluence.open(str(tmp_path / "run")).scores().compute().astype(float)
    authors = np.concatenate(
        [np.load(tmp_path / f"train-{shard}.npz")["author"] for shard in (0, 1)]
    )
    sums = [scores[authors == author].sum(0) for author in range(3)]
    np.testing.assert_allclose(found["aggregate.group_sums"], sums, rtol=1e-5, atol=1e-9)
    means = found["aggregate.query_mean"].compute()
    np.testing.assert_allclose(means, scores.mean(1), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(found["dense.scores"].compute(), scores, rtol=1e-6)
    np.testing.assert_allclose(
        found["subset_sum.subset_sums"][0], scores[:10].sum(0), rtol=1e-5, atol=1e-9
    )
    monkeypatch.setattr(_queries, "QUERY_BYTES", 1)
    store = OpenRun.open(str(tmp_path / "run"))
    assert _queries.Queries(store, "test").tiles() == [(0, 64), (64, 128), (128, 150)]
    ok("score", tmp_path / "run", *asked, "--name", "tiled")
    for stage in ("score/{}", "scores/{}"):
        whole, tiled = (store.receipts(stage.format(name)) for name in ("whole", "tiled"))
        assert sorted(whole) == sorted(tiled)
        for part in whole:
            assert store.array_names(whole[part]) == store.array_names(tiled[part])
            for name in store.array_names(whole[part]):
                expected, found = store.read(whole[part], name), store.read(tiled[part], name)
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-10, err_msg=name)


def test_dense_scores_are_cut_into_tasks_that_fit_in_memory(folder, monkeypatch):
    monkeypatch.setattr(score_spec, "DENSE_BYTES", 4 * 7 * 64)
    ok("score", folder / "run", "--readout", "dense", "--name", "cut", "--executor", "serial")
    store = OpenRun.open(str(folder / "run"))
    parts = store.receipts("score/cut")
    assert len(parts) == 3
    stored = np.concatenate([store.read(parts[p], "example.dense.scores") for p in sorted(parts)])
    scores = streamfluence.open(str(folder / "run")).scores("test").compute()
    np.testing.assert_array_equal(stored, scores)


def test_lists_are_no_longer_than_the_training_set(folder):
    ok("score", folder / "run", "--top-k", str(10**18), "--name", "longest", "--executor", "serial")
    found = json.loads(ok("top", folder / "run", "longest/0", "-k", "100000", "--json"))
    count = OpenRun.open(str(folder / "run")).train.count
    assert len(found["helps"]) == len(found["hurts"]) == count
