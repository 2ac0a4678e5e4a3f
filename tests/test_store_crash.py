"""What survives SIGKILL, uncoordinated writers, a full disk and a lost mount.

The children are real processes and are really killed. Every system call of the
protocol is slowed down in them, because without latency no kill falls between two.
"""

import multiprocessing
import os
import random
import resource
import subprocess
import time
from multiprocessing.process import BaseProcess as Process
from pathlib import Path

import numpy as np
import pytest
from patience import HANG_SECONDS

from streamfluence.errors import StorageError, StreamfluenceError
from streamfluence.store import RunStore
from streamfluence.store.storage_posix import PosixStorage

STAGE = "collect/train/0"
N_PARTITIONS = 12
STEPS = 40  # of two writers, before they are killed; one commit takes about twenty

# A fork server that has imported everything: a child starts in 0.2 s, not in 2.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["streamfluence.store", "pytest"])


def arrays_of(partition):
    rng = np.random.default_rng(partition)
    rows = rng.integers(0, 255, (500, 64), dtype=np.uint8)
    return {"rows": rows, "loss": rng.standard_normal(500, np.float32)}


def slow_down(seed, steps=None):
    """Sleep before and after every call that the protocol is made of, and count them in ``steps``."""
    rng = random.Random(seed)

    def slowed(call):
        def wrapper(*args, **kwargs):
            time.sleep(rng.random() * 0.008)
            result = call(*args, **kwargs)
            if steps is not None:
                steps.release()
            time.sleep(rng.random() * 0.008)
            return result

        return wrapper

    for name in ("fsync", "link", "unlink", "write"):
        setattr(os, name, slowed(getattr(os, name)))
    PosixStorage.write = slowed(PosixStorage.write)


def commit_what_is_missing(folder, seed, steps):
    store = RunStore.create(folder, {"seed": 0})
    slow_down(seed, steps)
    missing = store.missing(STAGE, N_PARTITIONS)
    random.Random(seed).shuffle(missing)
    for partition in missing:
        store.commit(STAGE, partition, arrays_of(partition))


def committed_bytes(folder):
    receipts = Path(folder) / "receipts" / STAGE
    return {path.name: path.read_bytes() for path in receipts.glob("[0-9]*.json")}


def assert_sound(store):
    """Every receipt is whole, and what it promises is there and is right."""
    for partition, receipt in store.receipts(STAGE).items():
        for name, expected in arrays_of(partition).items():
            np.testing.assert_array_equal(store.read(receipt, name), expected)
    assert store.verify() == []


def test_thirty_kills_amid_commits_tear_nothing_and_the_last_worker_finishes(tmp_path):
    folder = str(tmp_path / "run")
    store, before, rng = RunStore.create(folder, {"seed": 0}), {}, random.Random(7)
    for kill in range(15):
        steps = context.Semaphore(0)
        workers = [
            context.Process(target=commit_what_is_missing, args=(folder, 2 * kill + i, steps))
            for i in (0, 1)
        ]
        for worker in workers:
            worker.start()
        # Not after a time but after a number of steps of the protocol, which is where they are.
        for _ in range(rng.randrange(1, STEPS)):
            while not steps.acquire(timeout=0.1) and any(map(Process.is_alive, workers)):
                pass
        for worker in workers:
            worker.kill()
            worker.join()
        after = committed_bytes(folder)
        assert {name: after.get(name) for name in before} == before
        before = after
        assert_sound(store)
    assert len(store.leftovers()) >= 10, (
        "the kills did not fall into commits, so they showed nothing"
    )
    commit_what_is_missing_quickly(store)
    assert store.missing(STAGE, N_PARTITIONS) == []
    store.collect_garbage(older_than_s=0)
    assert store.leftovers() == []
    assert_sound(store)


def commit_what_is_missing_quickly(store):
    for partition in store.missing(STAGE, N_PARTITIONS):
        store.commit(STAGE, partition, arrays_of(partition))


def _commit_all(folder, together, results, seed):
    slow_down(seed)
    store, create, lost = RunStore.open(folder), PosixStorage.create, []

    def counted(self, path, data):
        together.wait()  # everybody has written a whole attempt of this partition
        won = create(self, path, data)
        lost.extend([path] * (not won))
        return won

    PosixStorage.create = counted
    attempts = [store.commit(STAGE, k, arrays_of(k)).attempt for k in range(4)]
    results.put((attempts, len(lost)))


def test_writers_of_the_same_partitions_all_return_the_one_receipt(tmp_path):
    store = RunStore.create(tmp_path, {"seed": 0})
    together, results = context.Barrier(4), context.Queue()
    writers = [
        context.Process(target=_commit_all, args=(str(tmp_path), together, results, seed))
        for seed in range(4)
    ]
    for writer in writers:
        writer.start()
    answers = [results.get(timeout=HANG_SECONDS) for _ in writers]
    for writer in writers:
        writer.join()
    attempts = answers[0][0]
    assert all(answer == attempts for answer, _ in answers)
    assert sum(lost for _, lost in answers) == 4 * 3
    assert sorted(os.listdir(tmp_path / "parts" / STAGE)) == [
        f"{k:08d}.{attempts[k]}" for k in range(4)
    ]
    assert_sound(store)


def test_everything_is_flushed_before_the_receipt_is_linked(tmp_path, monkeypatch):
    store, calls = RunStore.create(tmp_path, {"seed": 0}), []
    fsync, link = os.fsync, os.link

    def spy_fsync(file):
        calls.append(os.readlink(f"/proc/self/fd/{file}"))
        fsync(file)

    def spy_link(source, target):
        calls.append(f"link {target}")
        link(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "link", spy_link)
    receipt = store.commit(STAGE, 3, arrays_of(3))
    linked = calls.index(f"link {tmp_path}/receipts/{STAGE}/00000003.json")
    attempt = str(tmp_path / receipt.path)
    written = {f"{folder}/{name}" for folder, _, names in os.walk(attempt) for name in names}
    folders = {folder for folder, _, _ in os.walk(attempt)}
    above = {
        str(tmp_path / part) for part in ("parts/collect/train/0", "parts/collect/train", "parts")
    }
    assert written | folders | above <= set(calls[:linked])
    assert len(written) == len(receipt.objects)
    assert any(path.endswith(".partial") for path in calls[:linked])
    assert f"{tmp_path}/receipts/{STAGE}" in calls[linked:] and str(tmp_path) in calls[linked:]
    parents = [calls.index(path) for path in (f"{attempt}/rows", attempt, str(tmp_path / "parts"))]
    assert parents == sorted(parents)


def _commit_beyond_the_limit(folder, results):
    store = RunStore.open(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    try:
        store.commit(STAGE, 1, {"rows": np.ones((4 << 20, 1), np.uint8)})
    except StreamfluenceError as error:
        results.put((type(error).__name__, str(error)))


def test_a_file_size_limit_is_a_storage_error_and_leaves_the_rest_intact(tmp_path):
    store, results = RunStore.create(tmp_path, {"seed": 0}), context.Queue()
    store.commit(STAGE, 0, arrays_of(0))
    child = context.Process(target=_commit_beyond_the_limit, args=(str(tmp_path), results))
    child.start()
    kind, message = results.get(timeout=HANG_SECONDS)
    child.join()
    assert kind == "StorageError" and "ulimit -f" in message and "rows/c.0.0" in message
    assert store.missing(STAGE, 2) == [1] and store.leftovers() == []
    assert_sound(store)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    made = subprocess.run(mount, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"this user may not mount a small disk: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


def test_a_full_disk_is_a_storage_error_and_leaves_the_rest_intact(small_disk):
    store = RunStore.create(small_disk / "run", {"seed": 0})
    store.commit(STAGE, 0, arrays_of(0))
    with pytest.raises(StorageError, match="the disk is full: free space"):
        store.commit(STAGE, 1, {"rows": np.ones((4 << 20, 1), np.uint8)})
    assert store.missing(STAGE, 2) == [1] and store.leftovers() == []
    assert_sound(store)
    store.commit(STAGE, 1, arrays_of(1))
    assert_sound(store)


def test_a_disk_too_full_for_the_receipt_leaves_the_partition_missing(small_disk, monkeypatch):
    store = RunStore.create(small_disk / "run", {"seed": 0})
    create = PosixStorage.create

    def fill_first(self, path, data):
        with open(small_disk / "filler", "wb", buffering=0) as filler:
            try:
                while filler.write(b"\0" * 4096):
                    pass
            except OSError:
                pass
        return create(self, path, data)

    monkeypatch.setattr(PosixStorage, "create", fill_first)
    with pytest.raises(StorageError, match="the disk is full"):
        store.commit(STAGE, 0, arrays_of(0))
    monkeypatch.undo()
    assert store.missing(STAGE, 1) == [0] and store.receipts(STAGE) == {}
    (small_disk / "filler").unlink()
    store.commit(STAGE, 0, arrays_of(0))
    assert_sound(store)


def test_a_lost_mount_is_a_storage_error_and_no_damage(small_disk):
    store = RunStore.create(small_disk / "run", {"seed": 0})
    receipt = store.commit(STAGE, 0, arrays_of(0))
    subprocess.run(["umount", "-l", str(small_disk)], check=True)
    with pytest.raises(StorageError, match="has vanished"):
        store.read(receipt, "rows")


def test_a_failed_writer_returns_the_receipt_of_one_that_finished_meanwhile(tmp_path, monkeypatch):
    store, sync = RunStore.create(tmp_path, {"seed": 0}), PosixStorage.sync

    def overtaken(self, prefix, names):
        monkeypatch.undo()
        self.winner = store.commit(STAGE, 0, arrays_of(0))
        store.collect_garbage()  # takes the files of this attempt away
        sync(self, prefix, names)

    monkeypatch.setattr(PosixStorage, "sync", overtaken)
    assert store.commit(STAGE, 0, arrays_of(0)) == store.storage.winner
    assert store.leftovers() == []
    assert_sound(store)


def test_an_interrupted_commit_removes_its_attempt(tmp_path, monkeypatch):
    store = RunStore.create(tmp_path, {"seed": 0})

    def interrupt(self, prefix, names):
        raise KeyboardInterrupt

    monkeypatch.setattr(PosixStorage, "sync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.commit(STAGE, 0, arrays_of(0))
    assert os.listdir(tmp_path / "parts" / STAGE) == []


def test_an_error_after_the_link_does_not_remove_the_committed_data(tmp_path, monkeypatch):
    store, create = RunStore.create(tmp_path, {"seed": 0}), PosixStorage.create

    def fail_late(self, path, data):
        create(self, path, data)
        raise StorageError("the connection broke")

    monkeypatch.setattr(PosixStorage, "create", fail_late)
    with pytest.raises(StorageError):
        store.commit(STAGE, 0, arrays_of(0))
    monkeypatch.undo()
    assert store.missing(STAGE, 1) == []
    assert_sound(store)
