"""Canonical arrays hold exactly the committed rows, for readers that know only Zarr."""

import os
import tempfile

import numpy as np
import pytest
import zarr

from streamfluence.errors import DamageError, IncompleteError, InputError
from streamfluence.layout import collect_stage
from streamfluence.store import RunStore, grid


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(grid, "INNER_BYTES", 256)
    monkeypatch.setattr(grid, "SHARD_BYTES", 1024)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield RunStore.create(f"{folder}/run", {"seed": 0})


def collect(store, lengths, n_checkpoints=2, widths=(32, 32), compressor="none"):
    """Commit random partitions; return the long arrays they are pieces of."""
    rng, whole = np.random.default_rng(0), []
    for checkpoint in range(n_checkpoints):
        rows = rng.integers(0, 255, (sum(lengths), widths[checkpoint]), dtype=np.uint8)
        loss = rng.standard_normal(sum(lengths), np.float32)
        whole.append((rows, loss))
        start = 0
        for partition, length in enumerate(lengths):
            part = slice(start, start := start + length)
            arrays = {
                "rows": rows[part],
                "loss": loss[part],
                "scale": np.zeros((length, 0), np.float32),
            }
            store.commit(
                collect_stage("train", checkpoint),
                partition,
                arrays,
                compressors={"rows": compressor},
            )
    return whole


def built(store, n_partitions, n_checkpoints=2):
    path = store.finalise("train", n_checkpoints, n_partitions, {"unit": "loss"})
    return path, zarr.open_group(store.storage.local_path(path), mode="r")


@pytest.mark.parametrize("compressor", ["none", "zstd"])
@pytest.mark.parametrize(
    "lengths",
    [
        [64, 64, 64],
        [64, 64, 17],
        [64],
        [5],
        [64, 64, 1],
        [61, 61, 61],
        [64, 13, 40],
        [3, 200],
        [64, 64, 80],
    ],
)
def test_canonical_arrays_equal_the_committed_rows(store, lengths, compressor):
    whole = collect(store, lengths, compressor=compressor)
    _, group = built(store, len(lengths))
    assert group["rows"].shape == (2, sum(lengths), 32) and group["scale"].shape == (
        2,
        sum(lengths),
        0,
    )
    for checkpoint, (rows, loss) in enumerate(whole):
        np.testing.assert_array_equal(group["rows"][checkpoint], rows)
        np.testing.assert_array_equal(group["loss"][checkpoint], loss)
    assert group["rows"].metadata.dimension_names == ("checkpoint", "example", "code")
    assert group["loss"].metadata.dimension_names == ("checkpoint", "example")
    assert group.attrs["unit"] == "loss" and group.attrs["fingerprint"] == store.fingerprint
    assert store.verify() == []


def test_equal_partitions_are_linked_and_only_the_shorter_last_one_is_copied(store):
    collect(store, [64, 64, 64, 17])
    path, _ = built(store, 4)
    folder = store.storage.local_path(path)
    linked = {item.name for item in (folder / "rows").iterdir() if item.stat().st_nlink == 2}
    assert linked == {f"c.{checkpoint}.{shard}.0" for checkpoint in (0, 1) for shard in range(6)}
    assert {item.name for item in (folder / "rows").iterdir()} - linked == {
        "zarr.json",
        "c.0.6.0",
        "c.1.6.0",
    }
    receipt = store.receipt(collect_stage("train", 1), 1)
    source = store.storage.local_path(f"{receipt.path}/rows/c.1.0")
    assert source.stat().st_ino == (folder / "rows" / "c.1.3.0").stat().st_ino


def test_a_single_partition_of_an_odd_length_is_linked_whole(store):
    whole = collect(store, [61])
    path, group = built(store, 1)
    files = [
        item
        for item in (store.storage.local_path(path) / "rows").iterdir()
        if item.name != "zarr.json"
    ]
    assert len(files) == 4 and all(item.stat().st_nlink == 2 for item in files)
    np.testing.assert_array_equal(group["rows"][1], whole[1][0])


def test_finalise_can_be_repeated_and_replaces_what_was_there(store):
    whole = collect(store, [64, 17])
    path, _ = built(store, 2)
    folder = store.storage.local_path(path)
    (folder / "stale").write_text("")
    assert built(store, 2)[0] == path == "sets/train.zarr"
    assert not (folder / "stale").exists()
    assert sorted(os.listdir(folder.parent)) == ["train.objects.json", "train.zarr"]
    np.testing.assert_array_equal(zarr.open_group(folder, mode="r")["rows"][1], whole[1][0])


def test_deleting_the_run_parts_leaves_the_canonical_arrays_readable(store):
    whole = collect(store, [64, 64])
    path, group = built(store, 2)
    store.storage.remove_tree("parts")
    np.testing.assert_array_equal(group["rows"][0], whole[0][0])
    assert path


def test_checkpoints_of_different_width_become_one_array_each(store):
    whole = collect(store, [64, 17], widths=(32, 24))
    _, group = built(store, 2)
    assert sorted(group) == ["loss", "rows.0", "rows.1", "scale"]
    for checkpoint, (rows, _) in enumerate(whole):
        np.testing.assert_array_equal(group[f"rows.{checkpoint}"][0], rows)
    assert group["rows.1"].metadata.dimension_names == ("checkpoint_1", "example", "code_1")


def test_a_missing_partition_is_refused(store):
    collect(store, [64, 64])
    with pytest.raises(
        IncompleteError, match=r"stage collect/train/0 lacks 1 of 3 partitions \(the first: 2\)"
    ):
        store.finalise("train", 2, 3)


def test_damaged_rows_that_must_be_copied_are_refused(store):
    collect(store, [64, 17])
    receipt = store.receipt(collect_stage("train", 0), 1)
    path = store.storage.local_path(f"{receipt.path}/rows/c.0.0")
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    with pytest.raises(DamageError, match=r"partition 1, object rows/c\.0\.0"):
        store.finalise("train", 2, 2)
    assert not store.has("sets/train.zarr/zarr.json")


def test_an_array_that_some_partitions_lack_is_refused_by_name(store):
    store.commit(collect_stage("train", 0), 0, {"rows": np.ones((4, 2)), "group": np.ones(4)})
    store.commit(collect_stage("train", 0), 1, {"rows": np.ones((4, 2))})
    with pytest.raises(InputError, match="not every partition has the arrays group"):
        store.finalise("train", 1, 2)


def test_partitions_on_another_file_system_are_copied(store, monkeypatch):
    whole = collect(store, [64, 17])

    link = os.link

    def refuse(source, target):
        if "parts" in str(source):
            raise OSError(18, "Invalid cross-device link")
        link(source, target)

    monkeypatch.setattr(os, "link", refuse)
    _, group = built(store, 2)
    np.testing.assert_array_equal(group["rows"][1], whole[1][0])
