"""Every way in which stored bytes can differ from a receipt is found, named and can be repaired."""

import os
import shutil
import tempfile
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from streamfluence.errors import DamageError
from streamfluence.store import RunStore, grid
from streamfluence.store.documents import seal, unseal

STAGE = "collect/train/0"
SHARD = "rows/c.0.0"


def rows_of(partition):
    return np.random.default_rng(partition).integers(0, 255, (64, 32), dtype=np.uint8)


only_plain = pytest.mark.parametrize("compressor", ["none"], indirect=True)


@pytest.fixture(params=["none", "zstd"])
def compressor(request):
    return request.param


@pytest.fixture
def store(monkeypatch, compressor):
    """Return a run of three partitions, each with two shards of four inner chunks."""
    monkeypatch.setattr(grid, "INNER_BYTES", 256)
    monkeypatch.setattr(grid, "SHARD_BYTES", 1024)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        store = RunStore.create(f"{folder}/run", {"seed": 0})
        for partition in range(3):
            arrays = {"rows": rows_of(partition), "loss": np.arange(64.0) + partition}
            facts = {"start": 64 * partition, "stop": 64 * partition + 64}
            store.commit(STAGE, partition, arrays, {"p": partition}, facts, {"rows": compressor})
        yield store


def path_of(store, partition, name) -> Path:
    return store.storage.local_path(f"{store.receipt(STAGE, partition).path}/{name}")


def receipt_of(store, partition) -> Path:
    return store.storage.local_path(f"receipts/{STAGE}/{partition:08d}.json")


def flip(path, place=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 4
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "shorter": truncate,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "flipped": flip,
    "zeroed": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
}


@pytest.mark.parametrize("name", [SHARD, "rows/c.1.0", "rows/zarr.json"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_object_is_found_when_it_is_read_and_when_it_is_verified(store, kind, name):
    receipt = store.receipt(STAGE, 1)
    DAMAGE[kind](path_of(store, 1, name))
    for read in (store.read, lambda *a: list(store.read_blocks(*a, 5))):
        with pytest.raises(DamageError) as found:
            read(receipt, "rows")
        for part in (
            store.url,
            f"stage {STAGE}, partition 1, object {name}",
            "streamfluence repair",
        ):
            assert part in str(found.value)
    (problem,) = store.verify()
    assert (problem.stage, problem.partition) == (STAGE, 1)
    assert problem.object == f"{receipt.path}/{name}"
    np.testing.assert_array_equal(store.read(store.receipt(STAGE, 0), "rows"), rows_of(0))
    np.testing.assert_array_equal(store.read(receipt, "loss"), np.arange(64.0) + 1)


def test_every_flipped_byte_of_a_shard_is_found_or_was_never_used(store, compressor):
    """Reading plain rows uses neither the shard's index nor its own checksums; verify reads all."""
    receipt, path = store.receipt(STAGE, 1), path_of(store, 1, SHARD)
    good, silent = path.read_bytes(), 0
    for place in range(len(good)):
        flip(path, place)
        try:
            found = store.read(receipt, "rows")
        except DamageError:
            pass
        else:
            silent += 1
            np.testing.assert_array_equal(found, rows_of(1))
        if place % 16 == 0:
            assert len(store.verify()) == 1
        path.write_bytes(good)
    checksums_and_index = 4 * 4 + 4 * 16 + 4
    assert silent == (checksums_and_index if compressor == "none" else 0)


def test_shards_swapped_between_partitions_are_found_at_the_first_block(store):
    """Both shards are whole and their own checksums right: only the receipt knows."""
    one, other = path_of(store, 0, SHARD), path_of(store, 1, SHARD)
    one.rename(one.with_suffix(".x"))
    other.rename(one)
    one.with_suffix(".x").rename(other)
    for partition in (0, 1):
        receipt = store.receipt(STAGE, partition)
        with pytest.raises(DamageError, match=r"object rows/c\.0\.0"):
            store.read(receipt, "rows", rows=slice(0, 1))
        with pytest.raises(DamageError):
            next(store.read_blocks(receipt, "rows", 1))
        np.testing.assert_array_equal(
            store.read(receipt, "rows", rows=slice(32, 64)), rows_of(partition)[32:]
        )
    assert {(problem.partition, problem.object[-10:]) for problem in store.verify()} == {
        (0, SHARD),
        (1, SHARD),
    }


def test_shards_swapped_inside_one_array_are_found(store):
    one, other = path_of(store, 1, SHARD), path_of(store, 1, "rows/c.1.0")
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    with pytest.raises(DamageError, match=r"object rows/c\.0\.0"):
        store.read(store.receipt(STAGE, 1), "rows")


@only_plain
def test_inner_chunks_swapped_with_their_checksums_are_found(store):
    path = path_of(store, 1, SHARD)
    data, stride = path.read_bytes(), 256 + 4
    path.write_bytes(data[stride : 2 * stride] + data[:stride] + data[2 * stride :])
    with pytest.raises(DamageError):
        store.read(store.receipt(STAGE, 1), "rows", rows=slice(0, 8))


@only_plain
def test_a_changed_object_with_a_fresh_checksum_inside_is_found(store):
    path = path_of(store, 1, SHARD)
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    data[256:260] = google_crc32c.value(bytes(data[:256])).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DamageError):
        store.read(store.receipt(STAGE, 1), "rows")


@pytest.mark.parametrize("kind", sorted(DAMAGE.keys() - {"missing"}))
def test_a_damaged_receipt_is_named_and_set_aside_by_discard(store, kind):
    path = receipt_of(store, 1)
    DAMAGE[kind](path)
    for ask in (lambda: store.receipts(STAGE), lambda: store.receipt(STAGE, 1)):
        with pytest.raises(DamageError, match=r"receipts/collect/train/0/00000001\.json"):
            ask()
    with pytest.raises(DamageError, match="repair"):
        store.commit(STAGE, 1, {"rows": rows_of(1)})
    (problem,) = store.verify()
    assert (problem.partition, problem.object) == (1, f"receipts/{STAGE}/00000001.json")
    damaged = path.read_bytes()
    assert store.discard(STAGE, 1) and not store.discard(STAGE, 1)
    (aside,) = store.storage.local_path(f"receipts-damaged/{STAGE}").iterdir()
    assert aside.read_bytes() == damaged and aside.name.startswith("00000001.")
    assert store.missing(STAGE, 3) == [1] and store.verify() == []


def test_a_receipt_of_another_run_is_damage(store):
    with tempfile.TemporaryDirectory() as folder:
        other = RunStore.create(folder, {"seed": 1})
        other.commit(STAGE, 1, {"rows": rows_of(1)})
        shutil.copy(
            other.storage.local_path(f"receipts/{STAGE}/00000001.json"), receipt_of(store, 1)
        )
    with pytest.raises(DamageError, match="belongs to another run: its fingerprint is"):
        store.receipts(STAGE)


def test_a_receipt_of_another_partition_is_damage(store):
    shutil.copy(receipt_of(store, 0), receipt_of(store, 1))
    with pytest.raises(DamageError, match=f"belongs to stage {STAGE}, partition 0"):
        store.receipts(STAGE)


@pytest.mark.parametrize(
    "change",
    [
        {"objects": {"../../../../manifest.json": [1, 1]}},
        {"objects": {"/etc/passwd": [1, 1]}},
        {"attempt": "../../../x"},
        {"attempt": "x/y"},
        {"objects": {"rows/c.0.0": [-1, 1]}},
        {"objects": {"rows/c.0.0": 1}},
        {"start": "0"},
        {"unknown": 1},
    ],
)
def test_a_malicious_receipt_with_a_right_checksum_is_refused(store, change):
    path = receipt_of(store, 1)
    path.write_bytes(seal({**unseal(path.read_bytes(), ""), **change}))
    with pytest.raises(DamageError, match="is malformed"):
        store.receipt(STAGE, 1)


def test_an_attempt_that_is_a_link_out_of_the_run_is_refused(store):
    attempt = store.storage.local_path(store.receipt(STAGE, 1).path)
    with tempfile.TemporaryDirectory() as outside:
        shutil.move(attempt, f"{outside}/attempt")
        attempt.symlink_to(f"{outside}/attempt")
        with pytest.raises(DamageError, match=r"is a symbolic link to .*/attempt, where"):
            store.read(store.receipt(STAGE, 1), "rows")


def test_partitions_that_claim_the_same_rows_are_a_problem(store):
    store.commit(STAGE, 3, {"rows": rows_of(3)}, facts={"start": 180, "stop": 250})
    (problem,) = store.verify()
    assert problem.what == "claims rows from 180, but partition 2 reaches to 192"


def test_verify_checks_structure_always_and_bytes_of_the_sampled_share_only(store):
    every, some, again, other = [], [], [], []
    store.verify(checked=lambda path, length: every.append((path, length)))
    store.verify(fraction=0.5, seed=1, checked=lambda path, length: some.append((path, length)))
    store.verify(fraction=0.5, seed=1, checked=lambda path, length: again.append((path, length)))
    store.verify(fraction=0.5, seed=2, checked=lambda path, length: other.append((path, length)))
    assert len(every) == sum(len(receipt.objects) for receipt in store.receipts(STAGE).values())
    assert sum(length for _, length in every) == sum(
        r.nbytes for r in store.receipts(STAGE).values()
    )
    assert some == again != other and 0 < len(some) < len(every) and set(some) < set(every)
    flip(path_of(store, 1, SHARD))
    truncate(path_of(store, 2, SHARD))
    assert [problem.partition for problem in store.verify(fraction=0.0)] == [2]
    assert store.verify(stages=["sketch/0"]) == []


def test_a_repaired_partition_is_whole_again_and_its_old_attempt_is_garbage(store):
    damaged = store.receipt(STAGE, 1)
    flip(path_of(store, 1, SHARD))
    (problem,) = store.verify()
    store.discard(problem.stage, problem.partition)
    assert store.missing(STAGE, 3) == [1]
    assert [leftover.deletable for leftover in store.leftovers()] == [False]
    assert store.collect_garbage(older_than_s=0) == []
    repaired = store.commit(STAGE, 1, {"rows": rows_of(1)})
    assert [leftover.path for leftover in store.collect_garbage()] == [damaged.path]
    assert store.verify() == [] and store.leftovers() == []
    np.testing.assert_array_equal(store.read(repaired, "rows"), rows_of(1))


def test_garbage_is_what_no_receipt_names_and_only_old_temporaries_go(store):
    lost = store.storage.local_path(f"parts/{STAGE}/00000001.loser-1-abcdef01")
    working = store.storage.local_path(f"parts/{STAGE}/00000009.worker-1-abcdef01")
    for folder in (lost, working):
        folder.mkdir()
        (folder / "zarr.json").write_text("{}")
    names = [f"receipts/{STAGE}/.x.json.h-1-a.partial", ".manifest.json.h-1-a.partial"]
    temporaries = [store.storage.local_path(name) for name in names]
    half_built = store.storage.local_path("sets/train.zarr.h-1-a.partial")
    half_built.mkdir(parents=True)
    for path in (*temporaries, half_built / "zarr.json"):
        path.write_text("half")
    found = {leftover.path: leftover.deletable for leftover in store.leftovers(older_than_s=3600)}
    relative = [str(path.relative_to(store.url)) for path in (lost, working, half_built)]
    assert found == {
        relative[0]: True,
        relative[1]: False,
        relative[2]: False,
        names[0]: False,
        names[1]: False,
    }
    assert [leftover.path for leftover in store.collect_garbage(older_than_s=3600)] == [relative[0]]
    for path in (*temporaries, half_built / "zarr.json"):
        os.utime(path, (0, 0))
    gone = {leftover.path for leftover in store.collect_garbage(older_than_s=3600)}
    assert gone == {relative[2], *names}
    assert working.exists() and store.verify() == [] and len(store.receipts(STAGE)) == 3


def test_nothing_of_a_partition_with_a_damaged_receipt_is_garbage(store):
    """Its receipt cannot be read, so any attempt may be the committed one."""
    store.storage.local_path(f"parts/{STAGE}/00000001.other-1-abcdef01").mkdir()
    truncate(receipt_of(store, 1))
    assert store.collect_garbage(older_than_s=0) == [] == store.leftovers()
