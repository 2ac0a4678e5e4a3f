"""Ledgers of example sets: append only, each generation sealed with all before it."""

import shutil
from itertools import pairwise

import numpy as np
import pytest
from small_job import JOB, load, write_job

import streamfluence
from streamfluence.data import open_reader
from streamfluence.errors import DamageError, IncompleteError, InputError
from streamfluence.execution import Execution
from streamfluence.job_parser import load_job
from streamfluence.layout import FORMAT_VERSION, Span
from streamfluence.run.example_set import example_set_of
from streamfluence.run.identity import identity
from streamfluence.run.opened import OpenRun
from streamfluence.run.place import Place
from streamfluence.run.resolve import open_run
from streamfluence.stages.collect import collect
from streamfluence.stages.export import export
from streamfluence.stages.finalise import finalise
from streamfluence.stages.repair import repair
from streamfluence.stages.run import run
from streamfluence.stages.score import score
from streamfluence.stages.sketch import sketch
from streamfluence.stages.status import status
from streamfluence.stages.top import top
from streamfluence.stages.verify import verify
from streamfluence.store import RunStore
from streamfluence.store.documents import seal, unseal
from streamfluence.store.ledger import append_generation, begin_ledger, generations, set_names

SERIAL = Execution(executor="serial", workers=1, device="cpu")
MANIFEST = {"checkpoints": ["a"], "seed": 1}
FIRST = {
    "measurement": "loss",
    "table": {"reader": "arrays"},
    "count": 70,
    "partition_examples": 32,
    "identity": {"files": 1},
    "code": {},
}


@pytest.fixture
def store(tmp_path):
    """A run with one set of two generations."""
    store = RunStore.create(tmp_path / "run", MANIFEST)
    begin_ledger(store.storage, "train", store.fingerprint, FIRST)
    append(store, {**FIRST, "count": 40, "partition_examples": 16, "identity": {"files": 2}})
    return store


def append(store, content, name="train"):
    append_generation(store.storage, name, store.manifest, store.fingerprint, content)


def ledger(store, name="train"):
    return list(generations(store.storage, name, store.manifest, store.fingerprint))


def test_generations_are_numbered_on_and_partitions_cut_within_each(store):
    pinned = example_set_of("train", ledger(store))
    assert pinned.count == 110 and pinned.measurement == "loss"
    starts = [0, 32, 64, 70, 86, 102, 110]
    assert pinned.spans == [Span(a, b) for a, b in pairwise(starts)]
    assert pinned.partitions == len(pinned.spans) == 6
    owners = [sum(row >= start for start in starts[1:]) for row in range(110)]
    assert pinned.owners(np.arange(110)).tolist() == owners
    assert pinned.partition_seals == [pinned.seals[0]] * 3 + [pinned.seals[1]] * 3
    assert pinned.seal == pinned.seals[1] != pinned.seals[0]


def test_what_is_appended_changes_no_partition_and_no_seal_that_was_there(store):
    before = example_set_of("train", ledger(store))
    append(store, {**FIRST, "count": 5})
    after = example_set_of("train", ledger(store))
    assert after.spans[: before.partitions] == before.spans
    assert after.partition_seals[: before.partitions] == before.partition_seals
    assert after.seals[:2] == before.seals and after.count == before.count + 5


def test_a_seal_is_of_all_that_came_before(tmp_path):
    seals = []
    for number, changes in enumerate(({}, {"count": 71}, {"identity": {"files": 3}})):
        store = RunStore.create(tmp_path / str(number), MANIFEST)
        begin_ledger(store.storage, "train", store.fingerprint, {**FIRST, **changes})
        append(store, FIRST)
        seals.append(example_set_of("train", ledger(store)).seal)
    assert len(set(seals)) == 3


def test_a_set_begins_once(store):
    begin_ledger(store.storage, "train", store.fingerprint, FIRST)
    with pytest.raises(InputError, match=r"training set .*count: stored 70, asked 71"):
        begin_ledger(store.storage, "train", store.fingerprint, {**FIRST, "count": 71})
    assert set_names(store.storage) == ["train"] and len(ledger(store)) == 2


def of_another_run(folder):
    other = RunStore.create(folder.parent / "other", {**MANIFEST, "seed": 2})
    begin_ledger(other.storage, "train", other.fingerprint, FIRST)
    shutil.copy(folder.parent / "other/data/train/000000.json", folder / "data/train/000000.json")


def edited(folder, number, **changes):
    path = folder / f"data/train/{number:06d}.json"
    path.write_bytes(seal({**unseal(path.read_bytes(), ""), **changes}))


def renamed(folder):
    (folder / "data/train").rename(folder / "data/asked")


DAMAGES = {
    "lost": lambda folder: (folder / "data/train/000000.json").unlink(),
    "of another run": of_another_run,
    "replaced": lambda folder: edited(folder, 0, identity={"files": 9}),
    "out of order": lambda folder: edited(folder, 1, start=64),
    "another measurement": lambda folder: edited(folder, 1, measurement="margin"),
    "another number": lambda folder: edited(folder, 1, generation=2),
    "of another set": renamed,
    "truncated": lambda folder: (folder / "data/train/000001.json").write_bytes(b"{"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_generation_that_is_lost_replaced_or_foreign_is_found(store, tmp_path, damage):
    DAMAGES[damage](tmp_path / "run")
    (name,) = set_names(store.storage)
    with pytest.raises(DamageError, match=f"data/{name}/00000"):
        ledger(store, name)
    assert any(problem.object.startswith(f"data/{name}/00000") for problem in store.verify())
    with pytest.raises(DamageError):
        append(store, FIRST, name)


@pytest.fixture(scope="module")
def parted(tmp_path_factory):
    """A finished run whose sets have two generations each, and the job of the same data in one."""
    folder = tmp_path_factory.mktemp("parted")
    job = write_job(folder)
    for part, cut in (("train", 70), ("test", 3)):
        halves(folder, part, cut)
    first = JOB.replace("train-*.npz", "train_a.npz").replace("test.npz", "test_a.npz")
    (folder / "first.toml").write_text(first)
    made = begun(folder)
    collect(str(folder / "run"), None, SERIAL)
    score(str(folder / "run"), execution=SERIAL)
    return folder, job, made


def halves(folder, part, cut):
    parts = [np.load(path) for path in sorted(folder.glob(f"{part}*.npz"))]
    whole = {key: np.concatenate([part[key] for part in parts]) for key in ("x", "y")}
    for name, rows in (("a", slice(0, cut)), ("b", slice(cut, None))):
        np.savez(folder / f"{part}_{name}.npz", **{key: a[rows] for key, a in whole.items()})


def begun(folder):
    """Make a run of the first halves, append the second ones, and sketch it."""
    made = open_run(load_job(folder / "first.toml"), str(folder / "run"), device="cpu")
    data = dict(made.place.data)
    for name in ("train", "test"):
        table = {"reader": "arrays", "path": f"{name}_b.npz"}
        reader = open_reader(table, folder)
        generation = {
            "measurement": made.example_set(name).measurement,
            "table": {"reader": "arrays"},
            "count": reader.count(),
            "partition_examples": 32,
            "identity": identity(made.storage, reader, table),
            "code": {},
        }
        made.append(name, generation)
        data[name] = [*data[name], {"path": f"{name}_b.npz"}]
    made.move_to(Place(folder, "task.py", ("model.pt",), data))
    sketch(str(folder / "run"), SERIAL)
    return made


def test_a_set_of_two_generations_scores_like_the_same_data_in_one(parted, tmp_path):
    folder, job, _ = parted
    run(str(job), str(tmp_path / "whole"))
    two, one = (streamfluence.open(str(at)) for at in (folder / "run", tmp_path / "whole"))
    assert [len(s) for s in OpenRun.open(two.path).train.spans] == [32, 32, 6, 32, 32, 16]
    # Batches are cut from the start of a generation, and how they are cut rounds otherwise.
    np.testing.assert_allclose(two.scores().compute(), one.scores().compute(), rtol=2e-3, atol=2e-6)
    ranked = [[line["row"] for line in each.top(5)["helps"]] for each in (two, one)]
    assert ranked[0] == ranked[1]
    _, x, _, _, y = load(folder)
    assert two.top(5)["query"]["group"] is None and len(x) == 150 and len(y) == 7


def test_every_verb_works_on_two_generations(parted, tmp_path):
    folder, _, _ = parted
    path = str(folder / "run")
    assert verify(path, full=True)["problems"] == []
    assert status(path)["complete"]
    counts = {part["set"]: (part["examples"], part["of"]) for part in status(path)["sets"]}
    assert counts == {"train": (150, 6), "test": (7, 2)}
    export(path, str(tmp_path / "out.csv"))
    assert len((tmp_path / "out.csv").read_text().splitlines()) > 100
    assert finalise(path)["path"] == "sets/train.zarr"
    assert top(path, "6", k=1)["helps"][0]["preview"].startswith("x ")


def test_the_job_of_the_first_generation_goes_on(parted):
    folder, _, _ = parted
    assert run(str(folder / "first.toml"), str(folder / "run"))["sets"]["train"]["examples"] == 150


@pytest.fixture
def copied(parted, tmp_path):
    shutil.copytree(parted[0] / "run", tmp_path / "run")
    return tmp_path / "run"


def test_a_lost_last_generation_is_found_by_the_rows_of_it_and_no_row_is_set_aside(copied):
    (copied / "data/train/000001.json").unlink()
    with pytest.raises(DamageError, match="another query set"):
        top(str(copied), "0")
    with pytest.raises(DamageError, match=r"data/train/000001.json is missing, but rows of it"):
        verify(str(copied))
    with pytest.raises(DamageError, match=r"data/train/000001.json is missing"):
        repair(str(copied), SERIAL)
    assert OpenRun.open(str(copied)).committed("collect/train/0") == list(range(6))


def test_rows_of_a_partition_rest_on_their_own_generation(copied):
    store = OpenRun.open(str(copied))
    for partition, receipt in store.receipts("collect/train/0").items():
        assert receipt.facts["set"] == store.train.seals[partition >= 3]


def test_a_lost_partition_of_the_second_generation_is_made_again_with_the_same_bits(copied):
    store = OpenRun.open(str(copied))
    wanted = store.read_all(store.receipt("collect/train/0", 4))
    (copied / "receipts/collect/train/0/00000004.json").unlink()
    with pytest.raises(IncompleteError):
        score(str(copied), name="again", execution=SERIAL)
    repair(str(copied), SERIAL)
    found = store.read_all(store.receipt("collect/train/0", 4))
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert top(str(copied), "0")["helps"]


def test_a_run_of_the_format_before_is_refused_with_what_to_do(copied):
    path = copied / "manifest.json"
    content = unseal(path.read_bytes(), "")
    path.write_bytes(seal({**content, "format_version": FORMAT_VERSION - 1}))
    with pytest.raises(InputError, match=r"format 5.*pip install.*or collect again into another"):
        status(str(copied))
