"""Whatever one thing is lost, replaced or stale: every reader of a run refuses, or gives the same numbers."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_job import JOB, write_job

import streamfluence
from streamfluence.errors import DamageError, IncompleteError, InputError, StreamfluenceError
from streamfluence.execution import Execution
from streamfluence.job_parser import load_job
from streamfluence.run.opened import OpenRun
from streamfluence.run.resolve import open_run
from streamfluence.scoring.asked import Asked
from streamfluence.stages.export import export
from streamfluence.stages.finalise import finalise
from streamfluence.stages.repair import repair
from streamfluence.stages.run import run
from streamfluence.stages.score import score
from streamfluence.stages.sketch import sketch
from streamfluence.stages.verify import verify
from streamfluence.store.documents import seal, unseal

SERIAL = Execution(executor="serial")
TWO_SETS = JOB + '\n[queries.other]\nreader = "arrays"\npath = "other.npz"\n'
READOUTS = ["top_k", "self_influence", "aggregate", "dense"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run with two query sets and two scores; the queries fill two partitions."""
    folder = tmp_path_factory.mktemp("chain")
    job = write_job(folder, n_queries=40, job=TWO_SETS)
    with np.load(folder / "test.npz") as test:
        np.savez(folder / "other.npz", x=test["x"][::-1][:35] * 2, y=test["y"][::-1][:35])
    run(job, str(folder / "run"), {"score.readouts": READOUTS})
    return folder / "run"


def copied(finished: Path, target: Path) -> Path:
    """Return a copy of the run whose files can be removed and replaced, but not written into."""
    shutil.copytree(finished, target, copy_function=os.link)
    return target


def everything(path: Path, scratch: Path) -> dict[str, Any]:
    """Return what every reader gives: arrays and text, or the kind of its refusal."""
    opened = lambda: streamfluence.open(str(path))  # noqa: E731
    readers = {
        **{f"top {s}": lambda s=s: opened().top(f"{s}/33") for s in ("test", "other")},
        "top alone": lambda: opened().top("3"),
        **{f"export {s}": lambda s=s: exported(path, s, scratch) for s in ("test", "other")},
        **{f"results {s}": lambda s=s: computed(opened().results(s)) for s in ("test", "other")},
        **{
            f"scores {s}": lambda s=s: opened().scores(s).compute() for s in ("test", "other", None)
        },
        **{f"rows {s}": lambda s=s: opened().rows(s).compute() for s in ("train", "test")},
        "finalise": lambda: finalised(path),
        "status": lambda: opened().status()["scores"],
    }
    return {name: outcome(call) for name, call in readers.items()}


def outcome(call: Any) -> Any:
    try:
        return call()
    except StreamfluenceError as error:
        assert error.exit_code in (2, 3, 4), error
        return error


def exported(path: Path, label: str, scratch: Path) -> str:
    target = scratch / f"{label}.csv"
    target.unlink(missing_ok=True)
    export(str(path), str(target), name=label)
    return target.read_text()


def computed(results: dict[str, Any]) -> dict[str, Any]:
    return {k: v.compute() if hasattr(v, "compute") else v for k, v in results.items()}


def finalised(path: Path) -> dict[str, np.ndarray]:
    import zarr

    shutil.rmtree(path / "sets", ignore_errors=True)
    finalise(str(path), "train")
    group = zarr.open_group(path / "sets" / "train.zarr", mode="r")
    return {name: group[name][...] for name in group}


def assert_same_or_refused(found: dict[str, Any], sound: dict[str, Any]) -> None:
    for name, value in found.items():
        if not isinstance(value, StreamfluenceError) and name != "status":
            np.testing.assert_equal(value, sound[name], err_msg=name)


def files_of(path: Path) -> list[str]:
    kept = [p for p in path.rglob("*") if p.is_file() and "sets" not in p.parts]
    return sorted(str(p.relative_to(path)) for p in kept)


@pytest.fixture(scope="module")
def sound(finished, tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sound")
    found = everything(copied(finished, folder / "run"), folder)
    refusals = {name for name, value in found.items() if isinstance(value, StreamfluenceError)}
    assert refusals == {"top alone", "scores None"}  # there are two of them
    return found


def test_any_receipt_or_document_may_be_lost(finished, sound, tmp_path):
    lost = [name for name in files_of(finished) if not name.startswith("parts/")]
    assert len(lost) > 20
    for number, name in enumerate(lost):
        path = copied(finished, tmp_path / str(number))
        (path / name).unlink()
        try:
            assert_same_or_refused(everything(path, tmp_path), sound)
        except AssertionError as error:
            raise AssertionError(f"without {name}: {error}") from error
        shutil.rmtree(path)


def test_any_two_receipts_or_documents_of_a_kind_may_be_swapped(finished, sound, tmp_path):
    for number, (one, other) in enumerate(
        [
            ("data/test/000000.json", "data/other/000000.json"),
            ("scores/test/score.json", "scores/other/score.json"),
            ("receipts/score/test/00000000.json", "receipts/score/other/00000000.json"),
            ("receipts/scores/test/00000000.json", "receipts/scores/other/00000000.json"),
            ("receipts/collect/test/0/00000000.json", "receipts/collect/other/0/00000000.json"),
            ("receipts/collect/train/0/00000001.json", "receipts/collect/train/0/00000002.json"),
        ]
    ):
        path = copied(finished, tmp_path / str(number))
        os.rename(path / one, path / "swap")
        os.rename(path / other, path / one)
        os.rename(path / "swap", path / other)
        assert_same_or_refused(everything(path, tmp_path), sound)


@pytest.fixture
def two_dampings(finished, tmp_path) -> Path:
    """A copy of the run with a second score of the query set ``test``, under another damping."""
    path = copied(finished, tmp_path / "run")
    score(str(path), ["test"], damping=0.25, execution=SERIAL)
    return path


def test_no_score_takes_the_settings_of_another_of_the_same_queries(two_dampings):
    path = two_dampings
    documents = [path / f"scores/{name}/score.json" for name in ("test", "test-damping-0.25")]
    before = streamfluence.open(str(path)).top("test/0")
    one, other = (document.read_bytes() for document in documents)
    for document, content in zip(documents, (other, one), strict=True):
        document.unlink()
        document.write_bytes(content)
    with pytest.raises(DamageError, match="other settings"):
        streamfluence.open(str(path)).top("test/0")
    with pytest.raises(DamageError, match=r"scores/test/score\.json is not what its parts"):
        verify(str(path))
    with pytest.raises(DamageError, match="put back the one that was there"):
        repair(str(path), SERIAL)
    for document, content in zip(documents, (one, other), strict=True):
        document.write_bytes(content)
    assert streamfluence.open(str(path)).top("test/0") == before


def test_repair_merges_a_result_again_that_was_lost(two_dampings):
    path = two_dampings
    before = streamfluence.open(str(path)).top("test/0")
    shutil.rmtree(path / "receipts/scores")
    with pytest.raises(IncompleteError):
        streamfluence.open(str(path)).top("test/0")
    made = {each["stage"] for each in repair(str(path), SERIAL)["repaired"]}
    assert made == {"scores/test", "scores/other", "scores/test-damping-0.25"}
    assert streamfluence.open(str(path)).top("test/0") == before
    assert repair(str(path), SERIAL)["repaired"] == []


def test_a_query_set_that_lost_its_document_is_named(finished, tmp_path):
    path = copied(finished, tmp_path / "run")
    (path / "data/other/000000.json").unlink()
    opened = streamfluence.open(str(path))
    with pytest.raises(
        DamageError, match=r"rows of the query set 'other'.*data/other/000000.json is gone"
    ):
        opened.scores()
    with pytest.raises(DamageError, match="query set 'other'"):
        opened.top("other/0")
    assert opened.top("test/0")["helps"]


def test_scores_that_lost_their_document_are_named(finished, tmp_path):
    path = copied(finished, tmp_path / "run")
    (path / "scores" / "other" / "score.json").unlink()
    with pytest.raises(DamageError, match="results of the scores 'other'"):
        streamfluence.open(str(path)).top("0")


def test_old_numbers_do_not_take_a_new_name_or_other_settings(finished, tmp_path):
    path = copied(finished, tmp_path / "run")
    (path / "scores" / "test" / "score.json").unlink()
    with pytest.raises(DamageError, match="made from other settings"):
        score(str(path), ["test"], asked=Asked(top_k=3))
    (path / "scores" / "test" / "score.json").unlink()
    again = score(str(path), ["test"], asked=Asked(READOUTS, 100))
    assert again["scores"][0]["examples"] == 150  # the same settings: what was there counts


def test_lost_query_rows_are_refused_and_not_shifted(finished, sound, tmp_path):
    path = copied(finished, tmp_path / "run")
    (path / "receipts/collect/test/0/00000000.json").unlink()
    for damping in (None, 0.5):
        with pytest.raises(IncompleteError, match="1 of 2 partitions of 'test' are missing"):
            score(str(path), ["test"], damping=damping)
    (path / "receipts/score/test/00000000.json").unlink()
    repair(str(path))  # makes the rows first, then the scores
    np.testing.assert_equal(streamfluence.open(str(path)).top("test/33"), sound["top test"])


def test_scores_of_rows_that_were_replaced_are_refused(finished, sound, tmp_path):
    """A receipt that is sound and names other bytes, as that of another attempt would."""
    path = copied(finished, tmp_path / "run")
    store = OpenRun.open(str(path))
    receipt = store.receipt("collect/train/0", 2)
    arrays = store.read_all(receipt)
    arrays["rows"] = arrays["rows"][::-1].copy()
    store.discard("collect/train/0", 2)
    store.commit("collect/train/0", 2, arrays, {"stage": "x"}, receipt.facts, span=receipt.span)
    opened = streamfluence.open(str(path))
    for call in (lambda: opened.top("test/0"), lambda: opened.results("other")):
        with pytest.raises(DamageError, match="made from other training rows"):
            call()


def test_rows_of_another_sketch_are_refused(finished, tmp_path):
    path = copied(finished, tmp_path / "run")
    store = OpenRun.open(str(path))
    receipt = store.receipt("sketch/0/decision", 0)
    arrays, attributes = store.read_all(receipt), store.read_attributes(receipt)
    arrays["preconditioner/damping"] = arrays["preconditioner/damping"] * 2
    store.discard("sketch/0/decision", 0)
    store.commit("sketch/0/decision", 0, arrays, attributes, receipt.facts)
    opened = streamfluence.open(str(path))
    for call in (
        lambda: opened.top("test/0"),
        lambda: opened.scores("test"),
        lambda: opened.rows(),
        lambda: score(str(path), ["test"], name="again"),
        lambda: finalise(str(path)),
    ):
        with pytest.raises(DamageError, match="another sketch"):
            call()


def test_a_partition_that_claims_other_rows_is_refused(finished, tmp_path):
    path = copied(finished, tmp_path / "run")
    name = path / "receipts/collect/train/0/00000003.json"
    content = unseal(name.read_bytes(), "x")
    content["start"], content["stop"] = content["start"] - 32, content["stop"] - 32
    name.unlink()
    name.write_bytes(seal(content))
    with pytest.raises(DamageError, match="holds the rows 64 to 96, but must hold 96 to 128"):
        streamfluence.open(str(path)).rows()


def test_a_score_that_no_longer_rests_on_its_rows_is_made_again_by_repair(
    finished, sound, tmp_path
):
    path = copied(finished, tmp_path / "run")
    store = OpenRun.open(str(path))
    receipt = store.receipt("score/test", 0)
    arrays = store.read_all(receipt)
    arrays["state.self_influence.sum"] = arrays["state.self_influence.sum"] + 1
    store.discard("score/test", 0)
    store.commit("score/test", 0, arrays, {}, {**receipt.facts, "train": "0" * 32})
    with pytest.raises(DamageError, match="other training rows"):
        streamfluence.open(str(path)).top("test/33")
    repair(str(path))
    np.testing.assert_equal(streamfluence.open(str(path)).top("test/33"), sound["top test"])


def test_top_and_export_need_neither_data_nor_task(finished, sound, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(finished.parent, folder)
    for name in ("task.py", "model.pt", "test.npz", "train-0.npz", "train-1.npz", "other.npz"):
        (finished.parent / name).rename(finished.parent / f"{name}.away")
    try:
        path = copied(finished, tmp_path / "run")
        assert everything(path, tmp_path)["top test"] == sound["top test"]
        assert exported(path, "other", tmp_path) == sound["export other"]
        first = sound["top test"]["helps"][0]
        assert first["preview"].startswith("x ") and first["id"] == first["row"]
        assert sound["top test"]["query"]["preview"]
        # Scoring does without the data, too, and says what is lacking.
        score(str(path), ["test"], damping=0.5)
        shown = streamfluence.open(str(path)).top("test-damping-0.5/0")
        assert shown["helps"][0]["preview"] is None
        assert "could not be read" in shown["record"]["previews"]["train"]
    finally:
        for away in finished.parent.glob("*.away"):
            away.rename(away.with_suffix(""))


def test_changed_data_is_not_shown(finished, tmp_path):
    path = copied(finished, tmp_path / "run")
    test = finished.parent / "test.npz"
    before = test.read_bytes()
    with np.load(test) as arrays:
        changed = {"x": arrays["x"] + 1, "y": arrays["y"]}
    try:
        np.savez(test, **changed)
        shown = score(str(path), ["test"], damping=0.25)
        assert shown["scores"][0]["examples"] == 150
        found = streamfluence.open(str(path)).top("test-damping-0.25/0")
        assert found["query"]["preview"] is None and found["helps"][0]["preview"]
        assert "changed since" in found["record"]["previews"]["queries"]
    finally:
        test.write_bytes(before)


def test_an_identity_of_another_set_is_not_taken(finished, tmp_path):
    path = copied(finished, tmp_path / "run")
    one, other = sorted((path / "identities").iterdir())[:2]
    one.rename(path / "swap")
    other.rename(one)
    (path / "swap").rename(other)
    scored = score(str(path), ["test", "other"], damping=0.125)
    assert len(scored["scores"]) == 2
    record = streamfluence.open(str(path)).top("test-damping-0.125/0")["record"]
    assert record["previews"] == {"train": None, "queries": None}


def test_every_partition_says_what_it_rests_on(finished):
    names = {
        "receipts/collect/train/0/00000000.json": {"set", "sketch", "input_crc32c"},
        "receipts/score/test/00000000.json": {"score", "sketch", "queries", "train"},
        "receipts/scores/test/00000000.json": {"score", "tasks"},
    }
    for name, wanted in names.items():
        facts = json.loads((finished / name).read_bytes())["facts"]
        assert wanted <= set(facts)
    with pytest.raises(InputError):
        streamfluence.open(str(finished)).rows("nothing")


def test_a_sketch_is_not_finished_from_parts_of_another(tmp_path):
    """A state that was computed again with other last bits, as another machine would."""
    folder = tmp_path / "job"
    path = str(folder / "run")
    open_run(load_job(write_job(folder, n=96)), path)
    sketch(path, SERIAL)
    store = OpenRun.open(path)
    receipt = store.receipt("sketch/0/fitted-1", 0) or store.receipt("sketch/0/fitted-0", 0)
    arrays, attributes = store.read_all(receipt), store.read_attributes(receipt)
    name = next(name for name, array in arrays.items() if array.dtype.kind == "f" and array.size)
    arrays[name] = np.nextafter(arrays[name], np.inf)
    for stage in (receipt.stage, "sketch/0/decision"):
        store.discard(stage, 0)
    store.commit(receipt.stage, 0, arrays, attributes, dict(receipt.facts))
    with pytest.raises(DamageError, match=r"sketch/0/gram .* made with other states of the sketch"):
        sketch(path, SERIAL)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("top_k.positive_rows", lambda a: a + 10**6),
        ("top_k.positive_rows", lambda a: a - 5),
        ("top_k.positive_rows", lambda a: a[:, 0]),
        ("top_k.positive_rows", lambda a: a.astype(np.float32)),
        ("top_k.negative_scores", lambda a: a[:-1]),
        ("named.train.row", lambda a: a[::-1].copy()),
        ("named.train.id", lambda a: a[:-1]),
        ("named.queries.row", lambda a: a[:3]),
        ("named.train.row", None),
    ],
)
def test_a_result_whose_lists_make_no_sense_is_refused(finished, tmp_path, name, change):
    path = copied(finished, tmp_path / "run")
    store = OpenRun.open(str(path))
    receipt = store.receipt("scores/test", 0)
    arrays = store.read_all(receipt)
    changed = arrays.pop(name)
    if change is not None:
        arrays[name] = change(changed)
    store.discard("scores/test", 0)
    store.commit("scores/test", 0, arrays, {}, receipt.facts)
    for call in (
        lambda: streamfluence.open(str(path)).top("test/39"),
        lambda: exported(path, "test", tmp_path),
    ):
        with pytest.raises(DamageError, match="score again"):
            call()
