"""Whatever is lost, changed or half there in a finished run is found, and made again bit for bit."""

import json
import os
import shutil
from pathlib import Path

import pytest
from small_job import write_job

from streamfluence.errors import DamageError, IncompleteError, StreamfluenceError
from streamfluence.run.opened import OpenRun
from streamfluence.stages import collect as collect_stage_module
from streamfluence.stages.finalise import finalise
from streamfluence.stages.repair import repair
from streamfluence.stages.run import run
from streamfluence.stages.top import top
from streamfluence.stages.verify import verify
from streamfluence.store.documents import seal, unseal

STAGE = "collect/train/0"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    run(write_job(folder), str(folder / "run"))
    finalise(str(folder / "run"))
    return folder / "run"


@pytest.fixture
def path(made, tmp_path):
    """Return a copy of a finished run; hard links inside it become files of their own."""
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def receipt(path, stage=STAGE, partition=1) -> Path:
    return path / "receipts" / stage / f"{partition:08d}.json"


def contents(path) -> dict[str, dict[str, bytes]]:
    """Return the bytes of all committed arrays and published sets, attempt names left out."""
    store = OpenRun.open(str(path))
    found = {
        f"{stage}/{number}/{name}": (path / one.path / name).read_bytes()
        for stage in store.stages()
        if not stage.startswith("sketch/") or stage.endswith("/decision")
        for number, one in store.receipts(stage).items()
        for name in one.objects
    }
    sets = {str(p): p.read_bytes() for p in sorted((path / "sets").rglob("*")) if p.is_file()}
    return found | {name.removeprefix(str(path)): data for name, data in sets.items()}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


def swap(one, other):
    first, second = one.read_bytes(), other.read_bytes()
    for target, data in ((one, second), (other, first)):
        target.unlink()
        target.write_bytes(data)


def attempt(path, stage=STAGE, partition=1) -> Path:
    return path / OpenRun.open(str(path)).receipt(stage, partition).path


def objects(path, stage=STAGE, partition=1) -> list[Path]:
    return sorted(p for p in attempt(path, stage, partition).rglob("c.*"))


def test_a_finished_run_is_sound(path):
    found = verify(str(path), full=True)
    assert found["objects"] == found["objects_read"] > 50
    assert found["read_bytes"] == found["stored_bytes"]
    before = contents(path)
    done = repair(str(path))
    assert (done["set_aside"], done["repaired"], done["sets"]) == ([], [], [])
    assert contents(path) == before


LOST = [
    (STAGE, 1),
    ("collect/test/0", 0),
    ("sketch/0/decision", 0),
    ("sketch/0/coverage", 0),
    ("score/test", 0),
]


@pytest.mark.parametrize(("stage", "partition"), LOST)
def test_a_lost_receipt_that_something_rests_on_is_damage_and_made_again(path, stage, partition):
    before = contents(path)
    receipt(path, stage, partition).unlink()
    with pytest.raises(DamageError, match=f"{stage} partition {partition}.*is missing, but"):
        verify(str(path))
    done = repair(str(path))
    assert done["repaired"] == [{"stage": stage, "partition": partition}]
    assert contents(path) == before
    verify(str(path), full=True)


def test_rows_that_nothing_was_made_from_are_incomplete_and_not_damaged(path):
    for name in ("score", "scores"):
        shutil.rmtree(path / "receipts" / name)
        shutil.rmtree(path / name, ignore_errors=True)
    shutil.rmtree(path / "sets")
    receipt(path).unlink()
    with pytest.raises(IncompleteError, match=r"nothing is damaged .*1 of collect/train/0 \(1\)"):
        verify(str(path))
    assert repair(str(path))["repaired"] == []
    assert not receipt(path).exists()


def test_a_result_that_was_not_merged_yet_is_incomplete(path):
    receipt(path, "scores/test", 0).unlink()
    with pytest.raises(IncompleteError, match="scores/test"):
        verify(str(path))


@pytest.mark.parametrize("name", ["data/test/000000.json", "scores/test/score.json"])
@pytest.mark.parametrize("how", [Path.unlink, flip])
def test_a_lost_or_damaged_document_is_found_and_hinders_no_other_repair(path, name, how):
    before = contents(path)
    how(path / name)
    flip(objects(path)[0])
    with pytest.raises(DamageError) as found:
        verify(str(path), full=True)
    assert name in str(found.value) and f"{STAGE} partition 1" in str(found.value)
    with pytest.raises(DamageError, match=name) as found:
        repair(str(path))
    assert "1 partitions made again" in str(found.value) and "repeat" in str(found.value)
    rows = {key: data for key, data in contents(path).items() if key.startswith(STAGE)}
    assert rows == {key: data for key, data in before.items() if key.startswith(STAGE)}


def test_a_damaged_identity_is_named_and_removed_because_it_is_only_a_shortcut(path):
    shortcut = sorted((path / "identities").iterdir())[0]
    flip(shortcut)
    with pytest.raises(DamageError, match="identities/"):
        verify(str(path))
    assert f"identities/{shortcut.name}" in repair(str(path))["removed"]
    verify(str(path))


def test_a_manifest_that_the_receipts_contradict_is_in_doubt_and_nothing_is_changed(path):
    manifest = path / "manifest.json"
    good = manifest.read_bytes()
    fingerprint = OpenRun.open(str(path)).fingerprint
    content = unseal(good, "")
    content["sketch"]["seed"] = 7
    manifest.write_bytes(seal(content, indent=2))
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    for action in (verify, repair):
        with pytest.raises(
            DamageError, match=f"fingerprint {fingerprint}.*manifest.json.*in doubt"
        ):
            action(str(path))
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before
    manifest.write_bytes(good)
    verify(str(path), full=True)


def test_a_receipt_of_another_run_among_good_ones_is_a_damaged_receipt(path):
    before = contents(path)
    content = unseal(receipt(path).read_bytes(), "")
    receipt(path).write_bytes(seal({**content, "fingerprint": "0" * 64}))
    with pytest.raises(DamageError, match="belongs to another run"):
        verify(str(path))
    done = repair(str(path))
    assert [one["what"][:28] for one in done["set_aside"]] != []
    assert done["repaired"] == [{"stage": STAGE, "partition": 1}]
    assert contents(path) == before


@pytest.mark.parametrize("how", ["deleted", "flipped", "swapped", "added", "listing", "metadata"])
def test_a_published_set_is_checked_and_published_again(path, how):
    before = contents(path)
    rows = sorted((path / "sets" / "train.zarr" / "rows").glob("c.*"))
    if how == "deleted":
        rows[0].unlink()
    elif how == "flipped":
        flip(rows[0])
    elif how == "swapped":
        swap(rows[0], rows[1])
    elif how == "added":
        (path / "sets" / "train.zarr" / "rows" / "c.9.9.9").write_bytes(b"x")
    elif how == "listing":
        (path / "sets" / "train.objects.json").unlink()
    else:
        flip(path / "sets" / "train.zarr" / "zarr.json")
    with pytest.raises(DamageError, match="sets/train"):
        verify(str(path), full=True)
    assert repair(str(path))["sets"] == ["train"]
    assert contents(path) == before
    verify(str(path), full=True)


def test_a_set_published_from_other_rows_than_are_there_is_published_again(path):
    listing = path / "sets" / "train.objects.json"
    content = unseal(listing.read_bytes(), "")
    content["rests_on"] = dict.fromkeys(content["rests_on"], "0" * 32)
    listing.write_bytes(seal(content))
    with pytest.raises(DamageError, match=r"sets/train\.objects\.json .*other rows"):
        verify(str(path))
    assert repair(str(path))["sets"] == ["train"]
    verify(str(path), full=True)


def test_so_many_default_calls_as_shares_read_every_object(path):
    for _ in range(3):
        seen = []
        turns = verify(str(path))["turns"]
        for _ in range(turns):
            found = verify(str(path))
            seen.append((found["turn"], found["objects_read"]))
        assert sorted(turn for turn, _ in seen) == list(range(1, turns + 1))
        assert sum(count for _, count in seen) == found["objects"]


@pytest.mark.parametrize("number", range(4))
def test_a_flipped_byte_is_found_by_one_of_twenty_default_calls(path, number):
    every = objects(path)
    flip(every[number * len(every) // 4])

    def finds() -> bool:
        try:
            verify(str(path))
        except DamageError:
            return True
        return False

    assert any(finds() for _ in range(20))


def test_a_chosen_share_is_the_same_every_time_and_needs_no_note(path):
    notes = path / "verify.json"
    one, again, other = (verify(str(path), fraction=0.5, seed=s) for s in (0, 2, 1))
    assert one == again != other and not notes.exists()
    assert one["objects_read"] + other["objects_read"] == one["objects"]


def test_a_run_that_cannot_be_written_to_is_verified_all_the_same(path, monkeypatch):
    from streamfluence.errors import StorageError
    from streamfluence.store.storage_posix import PosixStorage

    def refuse(*arguments):
        raise StorageError("read-only")

    monkeypatch.setattr(PosixStorage, "write", refuse)
    assert {verify(str(path))["turn"] for _ in range(8)} != {1}


def test_a_killed_repair_is_taken_up_by_the_next(path, monkeypatch):
    before = contents(path)
    for partition in (1, 3):
        flip(objects(path, partition=partition)[0])
    calls = []

    def killed(*arguments, **options):
        calls.append(options["partition"])
        raise KeyboardInterrupt

    monkeypatch.setattr("streamfluence.stages.repair.collect", killed)
    with pytest.raises(KeyboardInterrupt):
        repair(str(path))
    assert calls == [1]
    monkeypatch.setattr("streamfluence.stages.repair.collect", collect_stage_module.collect)
    for name in ("score", "scores"):  # nothing was made from the rows any more
        shutil.rmtree(path / "receipts" / name)
        shutil.rmtree(path / name, ignore_errors=True)
    done = repair(str(path))
    assert done["repaired"] == [{"stage": STAGE, "partition": p} for p in (1, 3)]
    rows = {key: data for key, data in contents(path).items() if key.startswith(STAGE)}
    assert rows == {key: data for key, data in before.items() if key.startswith(STAGE)}


def test_a_receipt_of_a_partition_that_the_run_cannot_have_is_set_aside(path):
    content = unseal(receipt(path).read_bytes(), "")
    receipt(path, partition=77).write_bytes(seal({**content, "partition": 77}))
    shutil.copytree(attempt(path), path / f"parts/{STAGE}/00000077.{content['attempt']}")
    with pytest.raises(DamageError, match=r"partition 77: "):
        verify(str(path))
    assert repair(str(path))["set_aside"][0]["partition"] == 77
    verify(str(path), full=True)


@pytest.mark.parametrize("with_facts", [True, False])
def test_a_decision_of_another_sketch_is_replaced_and_not_the_rows(path, with_facts):
    """The rows are many and agree; believing the one plan would throw all of them away."""
    store, before = OpenRun.open(str(path)), contents(path)
    arrays = store.read_all(store.receipt("sketch/0/decision", 0))
    attributes = store.read_attributes(store.receipt("sketch/0/decision", 0))
    facts = store.receipt("sketch/0/decision", 0).facts if with_facts else {}
    store.discard("sketch/0/decision", 0)
    changed = {
        name: array * 2 if array.dtype.kind == "f" else array for name, array in arrays.items()
    }
    store.commit("sketch/0/decision", 0, changed, attributes, facts)
    shutil.rmtree(path / "receipts-damaged")
    with pytest.raises(DamageError, match=r"sketch/0/decision partition 0"):
        verify(str(path))
    with pytest.raises(StreamfluenceError):
        top(str(path), "0")
    done = repair(str(path))
    assert {"stage": "sketch/0/decision", "partition": 0} in done["repaired"]
    assert not [one for one in done["set_aside"] if one["stage"].startswith("collect/")]
    assert contents(path) == before


def test_what_cannot_be_made_again_is_said_after_all_else_was(path, made):
    data = made.parent / "train-0.npz"
    away = data.with_suffix(".away")
    before = contents(path)
    flip(objects(path)[0])
    flip(path / "sets" / "train.zarr" / "zarr.json")
    data.rename(away)
    try:
        with pytest.raises(DamageError, match="not all could be"):
            repair(str(path))
    finally:
        away.rename(data)
    done = repair(str(path))  # the receipt that was set aside is the record of what is left to do
    assert done["repaired"] == [{"stage": STAGE, "partition": 1}]
    assert contents(path) == before


def test_repair_computes_where_it_is_told_to(path, monkeypatch):
    from streamfluence.execution import Execution
    from streamfluence.scoring import score

    seen = []
    execute = score._execute
    monkeypatch.setattr(score, "_execute", lambda *a: (seen.append(a[3]), execute(*a)))
    receipt(path, "score/test", 0).unlink()
    how = Execution(executor="serial", device="cpu")
    repair(str(path), how)
    assert seen == [how]


def test_documents_stay_json_that_anybody_reads(path):
    for name in ("verify.json", "sets/train.objects.json"):
        verify(str(path))
        assert "crc32c" in json.loads((path / name).read_text())
    assert os.listdir(path).count("verify.json") == 1


@pytest.mark.parametrize(
    "name", [".test.json.host-1-a.partial", ".DS_Store", ".nfs0000001", "notes.txt", "test.json~"]
)
def test_a_file_among_the_query_sets_that_is_no_document_disturbs_nobody(path, name):
    (path / "data" / "test" / name).write_text("{")
    assert OpenRun.open(str(path)).query_sets() == ["test"]
    verify(str(path))
    repair(str(path))
    assert top(str(path), "test/0")["query"]["row"] == 0


@pytest.mark.parametrize("where", ["scores/other/score.json", "data/test/000000.json"])
def test_a_document_that_lacks_its_keys_is_named_and_all_else_repaired(path, where):
    before = contents(path)
    (path / where).parent.mkdir(exist_ok=True)
    (path / where).write_bytes(seal({"a": 1}))
    flip(objects(path)[0])
    with pytest.raises(DamageError) as found:
        verify(str(path), full=True)
    assert where in str(found.value) and f"{STAGE} partition 1" in str(found.value)
    with pytest.raises(DamageError, match=where):
        repair(str(path))
    assert contents(path) == before


def test_a_set_whose_data_is_gone_does_not_keep_others_from_repair(made, path):
    data = made.parent / "test.npz"
    before = contents(path)
    for stage in ("collect/test/0", STAGE):
        flip(objects(path, stage, 0)[0])
    data.rename(made.parent / "gone.npz")
    try:
        with pytest.raises(DamageError, match="test"):
            repair(str(path))
        run = OpenRun.open(str(path))
        assert run.receipt_there(STAGE, 0) and not run.receipt_there("collect/test/0", 0)
    finally:
        (made.parent / "gone.npz").rename(data)
    repair(str(path))
    assert contents(path) == before


def test_a_query_set_of_another_length_is_blamed_and_not_its_rows(path):
    before = contents(path)
    document = path / "data/test/000000.json"
    sound = document.read_bytes()
    document.write_bytes(seal({**unseal(sound, ""), "count": 6}))
    with pytest.raises(
        DamageError, match=r"data/test/000000.json.*put back the one that was there"
    ):
        repair(str(path))
    assert OpenRun.open(str(path)).receipt_there("collect/test/0", 0)
    document.write_bytes(sound)
    assert contents(path) == before


def test_what_is_longer_than_any_document_is_not_read(path):
    (kept,) = [*(path / "identities").iterdir()][:1]
    os.truncate(kept, 1 << 40)
    aside = path / f"receipts-damaged/{STAGE}/00000001.x.json"
    aside.parent.mkdir(parents=True)
    aside.touch()
    os.truncate(aside, 1 << 40)
    before = contents(path)
    receipt(path).unlink()
    repair(str(path))
    assert contents(path) == before
