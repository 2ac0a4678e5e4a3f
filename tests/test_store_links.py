"""Nothing is read, written or removed through a link, and nothing but a plain file is opened."""

import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest

from streamfluence.errors import DamageError, InputError, StreamfluenceError
from streamfluence.store import RunStore

STAGE = "collect/train/0"
ATTEMPT = "00000007.elsewhere-1-abcdef01"


@pytest.fixture
def store(tmp_path):
    """A run of three partitions and a published set, with a folder beside it that is not its own."""
    store = RunStore.create(tmp_path / "run", {"seed": 0})
    for partition in range(3):
        arrays = {"rows": np.full((64, 8), partition, np.uint8)}
        store.commit(
            STAGE, partition, arrays, facts={"start": 64 * partition, "stop": 64 * partition + 64}
        )
    store.create_document("data/test/000000.json", {"count": 1})
    store.finalise("train", 1, 3)
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    for name in ("precious", "deep/precious", "zarr.json", f"{'0' * 8}.json"):
        (tmp_path / "outside" / name).write_text("precious")
    return store


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return every plain file below a folder, found without following a link."""
    return {
        str(Path(at, name)): Path(at, name).read_bytes()
        for at, _, names in os.walk(folder)
        for name in names
        if not Path(at, name).is_symlink()
    }


def everything(store: RunStore):
    """Do all that removes, moves, reads or writes; what is refused is refused in a sentence."""
    actions = [
        lambda: store.collect_garbage(older_than_s=0),
        store.verify,
        lambda: store.leftovers(older_than_s=0),
        store.stages,
        lambda: store.receipts(STAGE),
        lambda: [store.read(r, "rows") for r in store.receipts(STAGE).values()],
        lambda: store.read_document("data/test/000000.json"),
        lambda: store.create_document("data/test/000000.json", {"count": 2}),
        lambda: store.commit(STAGE, 7, {"rows": np.zeros((4, 8), np.uint8)}),
        lambda: store.finalise("train", 1, 3),
        lambda: store.discard(STAGE, 7),
        lambda: store.storage.remove_tree("sets/train.zarr.x.partial"),
        lambda: store.collect_garbage(older_than_s=0),
    ]
    for action in actions:
        try:
            action()
        except StreamfluenceError as error:
            assert "\n" not in str(error)


PLACES = [
    f"parts/{STAGE}/{ATTEMPT}",
    f"parts/{STAGE}/00000001.elsewhere-1-abcdef01",
    "parts/collect/query",
    "parts/extra",
    f"receipts/{STAGE}/00000007.json",
    f"receipts/{STAGE}/.00000007.json.h-1-a.partial",
    "receipts/collect/query",
    "receipts/extra",
    "receipts-damaged",
    "sets/train.zarr.x.partial",
    "sets/other.zarr",
    "data/other/000000.json",
    "identities",
    ".manifest.json.h-1-a.partial",
    "scores",
]
TARGETS = ["outside", "run", f"run/parts/{STAGE}", "run/receipts", "outside/precious", "nowhere"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("target", TARGETS)
def test_a_link_anywhere_costs_no_file_that_it_leads_to(store, tmp_path, place, target):
    link = tmp_path / "run" / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / target)
    before = snapshot(tmp_path)
    everything(store)
    after = snapshot(tmp_path)
    published = str(tmp_path / "run" / "sets")
    changed = [
        p for p, data in before.items() if after.get(p) != data and not p.startswith(published)
    ]
    assert changed == []
    assert not [
        path for path in after if path.startswith(f"{tmp_path}/outside") and path not in before
    ]


FOLDERS = [
    "parts",
    "receipts",
    f"parts/{STAGE}",
    f"receipts/{STAGE}",
    "sets",
    "sets/train.zarr",
    "data",
    "data/test",
]


@pytest.mark.parametrize("place", FOLDERS)
@pytest.mark.parametrize("inside", [False, True])
def test_a_folder_that_became_a_link_to_its_own_content_is_damage_and_left_alone(
    store, tmp_path, place, inside
):
    """As somebody does who moves the large part of a run to another disk."""
    folder, moved = tmp_path / "run" / place, tmp_path / ("run/moved" if inside else "moved")
    shutil.move(folder, moved)
    folder.symlink_to(moved)
    before = snapshot(moved)
    assert any(problem.object.startswith(place.split("/")[0]) for problem in store.verify())
    everything(store)
    assert snapshot(moved) == before


def test_an_attempt_that_is_a_link_to_another_is_removed_as_a_link(store, tmp_path):
    """The other one is committed: following the link would remove it."""
    good = store.receipt(STAGE, 1)
    link = tmp_path / "run" / "parts" / STAGE / "00000001.other-1-abcdef01"
    link.symlink_to(tmp_path / "run" / good.path)
    assert [gone.path for gone in store.collect_garbage(older_than_s=0)] == [
        f"parts/{STAGE}/00000001.other-1-abcdef01"
    ]
    assert not link.is_symlink()
    np.testing.assert_array_equal(store.read(good, "rows"), np.ones((64, 8), np.uint8))


def test_a_receipt_that_is_a_link_is_set_aside_as_a_link(store, tmp_path):
    link = tmp_path / "run" / "receipts" / STAGE / "00000001.json"
    link.unlink()
    link.symlink_to("00000000.json")
    (problem,) = (p for p in store.verify() if p.partition == 1)
    assert "is a symbolic link to 00000000.json" in problem.what
    assert store.discard(STAGE, 1) and store.missing(STAGE, 3) == [1]
    assert store.receipt(STAGE, 0) is not None


def test_a_link_inside_an_attempt_goes_with_it_and_not_what_it_leads_to(store, tmp_path):
    lost = tmp_path / "run" / "parts" / STAGE / "00000001.lost-1-abcdef01"
    lost.mkdir()
    (lost / "rows").symlink_to(tmp_path / "outside")
    (lost / "c.0").symlink_to(tmp_path / "outside" / "precious")
    assert len(store.collect_garbage(older_than_s=0)) == 1
    assert not lost.exists() and (tmp_path / "outside" / "deep" / "precious").exists()


def test_an_object_is_never_written_through_what_has_its_name(store, tmp_path):
    precious = tmp_path / "outside" / "precious"
    for name in ("soft", "hard"):
        place = tmp_path / "run" / name
        place.symlink_to(precious) if name == "soft" else os.link(precious, place)
        store.storage.write(name, b"new")
        assert place.read_bytes() == b"new" and precious.read_text() == "precious"


def test_a_run_whose_own_folder_is_reached_through_links_works(store, tmp_path):
    (tmp_path / "here").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "here" / "run")
    opened = RunStore.open(tmp_path / "again")
    assert len(opened.receipts(STAGE)) == 3 and opened.storage.read("manifest.json")


def pipe(path):
    os.mkfifo(path)


def bound(path):
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def device(path):
    try:
        os.mknod(path, 0o666 | 0o020000, os.makedev(1, 5))  # /dev/zero: never ends
    except PermissionError:
        pytest.skip("this user may not make devices")


KINDS = {
    "pipe": pipe,
    "socket": bound,
    "device": device,
    "folder": Path.mkdir,
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "link to itself": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        f"receipts/{STAGE}/00000001.json",
        "data/test/000000.json",
        "object",
        "verify.json",
    ],
)
def test_what_is_no_file_is_refused_in_a_sentence_and_never_waited_for(store, tmp_path, kind, name):
    if name == "object":
        name = f"{store.receipt(STAGE, 1).path}/rows/c.0.0"
    place = tmp_path / "run" / name
    place.unlink(missing_ok=True)
    KINDS[kind](place)
    with pytest.raises(DamageError, match="where a run has a file of its own") as found:
        store.storage.read(name)
    assert str(place) in str(found.value)
    with pytest.raises(DamageError):
        store.storage.open(name)
    try:
        opened = RunStore.open(tmp_path / "run")
    except DamageError:
        assert name == "manifest.json"
        return
    assert opened.verify() or name == "verify.json"
    everything(opened)


@pytest.mark.parametrize("name", ["a" * 256, "b/" + "ü" * 200, "\ud800"])
def test_a_name_that_no_file_can_have_is_refused(store, name):
    with pytest.raises(InputError, match="cannot be the name of a file"):
        store.has(name)
