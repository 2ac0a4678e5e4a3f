"""A canonical set holds what the receipts say, is listed object by object, and replaces the old one last."""

import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import zarr
from small_job import write_job

from streamfluence.errors import DamageError, StorageError
from streamfluence.layout import collect_stage
from streamfluence.run.opened import OpenRun
from streamfluence.stages.finalise import finalise
from streamfluence.stages.run import run
from streamfluence.store import exchange
from streamfluence.store.digests import content_digest
from streamfluence.store.documents import unseal


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    write_job(folder, n=96)
    run(folder / "job.toml", str(folder / "run"))
    return folder / "run"


@pytest.fixture
def path(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def rows_of(path: Path) -> np.ndarray:
    return zarr.open_group(path / "sets" / "train.zarr", mode="r")["rows"][...]


def objects_of(path: Path) -> list[Path]:
    receipt = OpenRun.open(str(path)).receipt(collect_stage("train", 0), 1)
    return [
        path / receipt.path / name for name in receipt.objects if not name.endswith("zarr.json")
    ]


def listing(path: Path) -> dict:
    return unseal((path / "sets" / "train.objects.json").read_bytes(), "listing")


def test_the_listing_says_what_every_object_is_and_what_it_rests_on(path):
    finalise(str(path))
    tree = path / "sets" / "train.zarr"
    found = {
        str(file.relative_to(tree)): [file.stat().st_size, zlib.crc32(file.read_bytes())]
        for file in tree.rglob("*")
        if file.is_file()
    }
    assert listing(path)["objects"] == found and "zarr.json" in found
    receipts = OpenRun.open(str(path)).receipts(collect_stage("train", 0))
    wanted = content_digest(receipts[partition] for partition in sorted(receipts))
    assert listing(path)["rests_on"] == {collect_stage("train", 0): wanted}
    assert any(file.stat().st_nlink == 2 for file in tree.rglob("c.*"))


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def swapped(file: Path) -> None:
    attempt = file.parent.parent
    other = next(attempt.parent.glob("00000000.*")) / file.relative_to(attempt)
    file.write_bytes(other.read_bytes())


@pytest.mark.parametrize("damage", [flipped, emptied, swapped, Path.unlink])
def test_no_damaged_object_gets_into_a_set_and_the_old_set_stays(path, damage):
    finalise(str(path))
    before, said = rows_of(path), listing(path)
    saved = {file: file.read_bytes() for file in objects_of(path)}
    changed = 0
    for file in saved:
        os.unlink(file)  # the set has links to what lies here
        file.write_bytes(saved[file])
        damage(file)
        if file.exists() and file.read_bytes() == saved[file]:
            continue  # two partitions may hold the same flags
        changed += 1
        with pytest.raises(DamageError, match="partition 1"):
            finalise(str(path))
        np.testing.assert_array_equal(rows_of(path), before)
        assert listing(path) == said
        file.write_bytes(saved[file])
    assert changed > 3
    finalise(str(path))
    np.testing.assert_array_equal(rows_of(path), before)


@pytest.mark.parametrize("one_step", [True, False])
def test_the_old_set_is_there_until_the_new_one_is(path, one_step, monkeypatch):
    finalise(str(path))
    (path / "sets" / "train.zarr" / "old").write_text("")
    if not one_step:
        monkeypatch.setattr(exchange, "_exchange", lambda *_: False)
    rename, seen = os.rename, []

    def watched(source, target):
        if str(target).endswith("train.zarr"):
            seen.append(target)
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", watched)
    if one_step:
        finalise(str(path))
        assert not seen and not (path / "sets" / "train.zarr" / "old").exists()
        return
    with pytest.raises(StorageError):
        finalise(str(path))
    assert len(seen) == 2  # the new one, and the old one back


def test_a_swap_needs_no_instant_without_either(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    assert exchange.put_in_place(tmp_path / "one", tmp_path / "two", tmp_path / "aside") is not None
    assert (tmp_path / "two" / "one").exists()
    assert exchange.put_in_place(tmp_path / "two", tmp_path / "new", tmp_path / "aside") is None
    assert (tmp_path / "new" / "one").exists()


def test_a_copied_object_is_compared_too(path, monkeypatch):
    """Where there are no links a copy is made, and a copy may go wrong."""
    copy = shutil.copyfile

    def torn(source, target):
        copy(source, target)
        if "rows" in str(target):
            flipped(Path(target))

    link = os.link
    monkeypatch.setattr(
        os, "link", lambda a, b: link(a, b) if "parts" not in str(a) else no_links()
    )
    monkeypatch.setattr(shutil, "copyfile", torn)
    with pytest.raises(DamageError, match="rows"):
        finalise(str(path))
    assert not (path / "sets" / "train.zarr").exists()


def no_links():
    raise OSError(18, "Invalid cross-device link")
