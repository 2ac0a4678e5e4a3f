"""Documents of a run: created once with their content, refused when they contradict or are damaged."""

import json
import multiprocessing
import os
from hashlib import sha256

import pytest
from patience import HANG_SECONDS

from streamfluence.errors import DamageError, InputError, StorageError
from streamfluence.layout import FORMAT_VERSION
from streamfluence.store import RunStore, open_storage
from streamfluence.store.documents import seal

MANIFEST = {"rows": {"bytes": 256, "codec": "bands"}, "checkpoints": ["a.pt", "b.pt"], "seed": 1}


def test_a_created_run_opens_with_the_same_manifest_and_fingerprint(tmp_path):
    made = RunStore.create(tmp_path / "run", MANIFEST)
    opened = RunStore.open(str(tmp_path / "run"))
    assert opened.manifest == made.manifest == {"format_version": FORMAT_VERSION, **MANIFEST}
    assert opened.fingerprint == made.fingerprint


def test_the_fingerprint_is_the_sha256_of_the_canonical_manifest(tmp_path):
    text = json.dumps(
        {"format_version": FORMAT_VERSION, **MANIFEST}, sort_keys=True, separators=(",", ":")
    )
    assert RunStore.create(tmp_path, MANIFEST).fingerprint == sha256(text.encode()).hexdigest()


def test_creating_the_same_run_again_opens_it(tmp_path):
    first = RunStore.create(tmp_path, MANIFEST)
    inode = (tmp_path / "manifest.json").stat().st_ino
    again = RunStore.create(tmp_path, dict(reversed(MANIFEST.items())))
    assert again.fingerprint == first.fingerprint
    assert (tmp_path / "manifest.json").stat().st_ino == inode


def test_a_contradicting_manifest_is_refused_with_the_keys_and_both_values(tmp_path):
    RunStore.create(tmp_path, MANIFEST)
    other = {**MANIFEST, "rows": {"bytes": 128, "codec": "bands"}, "extra": True, "seed": 1.0}
    with pytest.raises(InputError) as refused:
        RunStore.create(tmp_path, other)
    message = str(refused.value)
    assert "rows.bytes: stored 256, asked 128" in message
    assert "extra: stored nothing, asked true" in message
    assert "seed: stored 1, asked 1.0" in message
    assert "codec" not in message


def test_a_contradiction_of_many_keys_names_eight_and_counts_the_rest(tmp_path):
    RunStore.create(tmp_path, {f"k{i:02}": 0 for i in range(20)})
    with pytest.raises(InputError, match=r"k07: stored 0, asked 1; and 12 more"):
        RunStore.create(tmp_path, {f"k{i:02}": 1 for i in range(20)})


def test_a_value_that_json_has_no_word_for_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be recorded"):
        RunStore.create(tmp_path, {"damping": float("inf")})


@pytest.mark.parametrize("sealed", [True, False])
def test_an_unknown_format_is_refused_with_the_version_that_wrote_it(tmp_path, sealed):
    content = {"streamfluence_version": "9.1", "format_version": 9, "anything": []}
    text = seal(content) if sealed else json.dumps(content).encode()
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(
        InputError,
        match=rf"has format 9, written by streamfluence 9\.1;.*reads format {FORMAT_VERSION}\b",
    ):
        RunStore.open(tmp_path)


def test_a_flipped_bit_in_the_format_number_is_damage_and_no_other_format(tmp_path):
    RunStore.create(tmp_path, MANIFEST)
    path = tmp_path / "manifest.json"
    text, now = path.read_text(), f'"format_version": {FORMAT_VERSION}'
    assert now in text
    path.write_text(text.replace(now, '"format_version": 7'))
    with pytest.raises(DamageError, match="differs from its checksum"):
        RunStore.open(tmp_path)


def test_a_folder_without_a_manifest_is_not_a_run(tmp_path):
    with pytest.raises(InputError, match=r"is not a run: it has no manifest\.json"):
        RunStore.open(tmp_path)


def test_every_flipped_bit_of_a_document_is_found(tmp_path):
    store = RunStore.create(tmp_path, MANIFEST)
    store.create_document("notes/digits.json", {"count": 360, "note": "x"})
    path = tmp_path / "notes" / "digits.json"
    good = path.read_bytes()
    for place in range(len(good)):
        for bit in (1, 4, 32):
            path.write_bytes(good[:place] + bytes([good[place] ^ bit]) + good[place + 1 :])
            with pytest.raises(DamageError, match=r"notes/digits\.json"):
                store.read_document("notes/digits.json")


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00" * 64, b'{"crc32c": "0000', b"[1, 2]"])
def test_a_truncated_or_foreign_document_is_damage(tmp_path, content):
    store = RunStore.create(tmp_path, MANIFEST)
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(DamageError, match=r"manifest\.json"):
        RunStore.open(tmp_path)
    assert store.manifest["seed"] == 1


def test_a_document_is_created_once_and_compared_afterwards(tmp_path):
    store = RunStore.create(tmp_path, MANIFEST)
    assert not store.has("notes/a.json")
    assert store.create_document("notes/a.json", {"count": 3, "tuple": (1, 2)})
    assert not store.create_document("notes/a.json", {"tuple": [1, 2], "count": 3})
    with pytest.raises(InputError, match="count: stored 3, asked 4"):
        store.create_document("notes/a.json", {"count": 4, "tuple": (1, 2)})
    assert store.read_document("notes/a.json") == {"count": 3, "tuple": [1, 2]}
    assert store.has("notes/a.json")


@pytest.mark.parametrize(
    "path", ["../x.json", "/etc/x.json", "a/../../x.json", "a//b", "", "a\\b", "./a"]
)
def test_a_path_that_leaves_the_run_is_refused(tmp_path, path):
    store = RunStore.create(tmp_path / "run", MANIFEST)
    for action in (store.read_document, store.has, lambda p: store.create_document(p, {"a": 1})):
        with pytest.raises(InputError, match="leaves the run"):
            action(path)
    assert os.listdir(tmp_path) == ["run"]


def test_a_symbolic_link_out_of_the_run_is_refused(tmp_path):
    store = RunStore.create(tmp_path / "run", MANIFEST)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.json").write_text('{"password": 1}')
    (tmp_path / "run" / "data").symlink_to(tmp_path / "outside")
    for action in (store.read_document, lambda p: store.create_document(p, {"a": 1})):
        with pytest.raises(DamageError, match=r"data is a symbolic link to .*/outside, where"):
            action("data/secret.json")


def test_a_run_behind_a_symbolic_link_works(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    RunStore.create(tmp_path / "link", MANIFEST)
    assert RunStore.open(f"file://{tmp_path}/link").manifest["seed"] == 1


def test_an_unusable_place_is_a_storage_error_with_advice(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        RunStore.create(tmp_path / "file" / "run", MANIFEST)


def test_an_input_output_error_of_the_device_is_a_storage_error():
    with pytest.raises(
        StorageError, match=r"cannot read /proc/.*the device or mount reports an error"
    ):
        open_storage("/proc/self").read("mem")


def test_a_file_system_without_links_is_named_as_the_reason(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StorageError, match="hard links"):
        RunStore.create(tmp_path, MANIFEST)
    assert os.listdir(tmp_path) == []


def test_a_link_that_succeeded_but_was_reported_as_failed_counts_as_won(tmp_path, monkeypatch):
    """NFS repeats a link whose answer was lost, and then reports that the name exists."""
    real = os.link

    def link_twice(source, target):
        real(source, target)
        real(source, target)

    monkeypatch.setattr(os, "link", link_twice)
    storage = open_storage(tmp_path)
    assert storage.create("a.json", b"1")
    monkeypatch.undo()
    assert not storage.create("a.json", b"2")
    assert storage.read("a.json") == b"1" and os.listdir(tmp_path) == ["a.json"]


def _race(folder, start, results, number):
    storage = open_storage(folder)
    start.wait()
    results.put([storage.create(f"doc{i}.json", b"%d" % number * 5000) for i in range(50)])


def test_of_racing_processes_exactly_one_creates_each_document(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["streamfluence.store", "pytest"])
    start, results = context.Barrier(4), context.Queue()
    racers = [
        context.Process(target=_race, args=(str(tmp_path), start, results, n)) for n in range(4)
    ]
    for racer in racers:
        racer.start()
    won = [results.get(timeout=HANG_SECONDS) for _ in racers]
    for racer in racers:
        racer.join()
    assert [sum(column) for column in zip(*won, strict=True)] == [1] * 50
    assert len({i for row in won for i, one in enumerate(row) if one}) == 50
    assert sorted(os.listdir(tmp_path)) == sorted(f"doc{i}.json" for i in range(50))
    for i in range(50):
        content = (tmp_path / f"doc{i}.json").read_bytes()
        assert len(content) == 5000 and len(set(content)) == 1
