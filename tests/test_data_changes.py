"""Data that changes under a worker that lives on never gets into a row."""

import os
import shutil
import threading

import numpy as np
import pytest
from small_job import JOB, write_job

from streamfluence.collecting import units as _collect_tasks
from streamfluence.errors import InputError
from streamfluence.execution import Execution
from streamfluence.job_parser import load_job
from streamfluence.run import identity as _identity
from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.run.identity import signed_identity
from streamfluence.run.opened import OpenRun
from streamfluence.run.resolve import open_run
from streamfluence.run.session import open_session
from streamfluence.stages.collect import collect
from streamfluence.stages.run import run
from streamfluence.stages.sketch import sketch
from streamfluence.store.documents import seal, unseal

SERIAL = Execution(executor="serial")  # one process, that lives on
TWO = JOB.replace('["model.pt"]', '["model.pt", "model.pt"]')


@pytest.fixture
def sketched(tmp_path):
    """A run of two checkpoints with a sketch and no rows, its session open in this process."""
    write_job(tmp_path, n=96, job=TWO)
    path = str(tmp_path / "run")
    open_run(load_job(tmp_path / "job.toml"), path)
    sketch(path, SERIAL)
    return tmp_path


def rewrite(folder, shift=1.0):
    """Write other examples into the first shard, of the same size, and give it back its times."""
    shard = folder / "train-0.npz"
    times = shard.stat()
    with np.load(shard) as found:
        arrays = dict(found)
    np.savez(shard, x=arrays["x"] + np.float32(shift), y=arrays["y"])
    assert shard.stat().st_size == times.st_size
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_data_that_changed_between_two_work_units_is_refused(sketched):
    path = str(sketched / "run")
    collect(path, ["train"], SERIAL, partition=0)
    rewrite(sketched)
    with pytest.raises(InputError, match=r"the data of 'train' changed since"):
        collect(path, ["train"], SERIAL, partition=1)
    assert sorted(OpenRun.open(path).receipts("collect/train/0")) == [0]


def test_data_that_changes_within_a_work_unit_is_refused(sketched, monkeypatch):
    path, arrays = str(sketched / "run"), _collect_tasks.partition_arrays

    def interrupted(decision, example_set, span):
        if span.start == 32:
            rewrite(sketched)
        return arrays(decision, example_set, span)

    monkeypatch.setattr(_collect_tasks, "partition_arrays", interrupted)
    with pytest.raises(InputError, match="was written to while it was read"):
        collect(path, ["train"], SERIAL)
    for checkpoint in (0, 1):
        assert 1 not in OpenRun.open(path).receipts(f"collect/train/{checkpoint}")


def test_data_that_changes_and_comes_back_is_refused_by_what_was_read(sketched, monkeypatch):
    """Even where sizes and times show nothing, another checkpoint was computed from other bytes."""
    path = str(sketched / "run")
    session = open_session(path, "cpu")
    collect(path, ["train"], SERIAL, partition=0)
    store = OpenRun.open(path)
    before = store.receipt("collect/train/0", 0).facts["input_crc32c"]
    assert store.receipt("collect/train/1", 0).facts["input_crc32c"] == before
    store.discard("collect/train/1", 0)
    monkeypatch.setattr(type(session), "refresh", lambda self, name: None)
    monkeypatch.setattr(type(session), "refuse_touched", lambda self, name: None)
    rewrite(sketched)
    with pytest.raises(InputError, match=r"other examples for partition 0 than those that .*/0/0"):
        collect(path, ["train"], SERIAL, partition=0)
    # Nor is a partition that was set aside made from other bytes, when no other one is left.
    store.discard("collect/train/0", 0)
    with pytest.raises(InputError, match="receipts-damaged"):
        collect(path, ["train"], SERIAL, partition=0)
    rewrite(sketched, -1.0)
    shutil.rmtree(sketched / "run" / "receipts-damaged")  # rounding: these are not the old bits


def test_touched_data_of_the_same_bytes_goes_on(sketched):
    path = str(sketched / "run")
    collect(path, ["train"], SERIAL, partition=0)
    for shard in sketched.glob("train-*.npz"):
        shard.write_bytes(shard.read_bytes())
    collect(path, ["train"], SERIAL)
    assert len(OpenRun.open(path).receipts("collect/train/0")) == 3


def test_an_identity_kept_for_another_table_or_time_is_not_taken(sketched):
    path = str(sketched / "run")
    store = OpenRun.open(path)
    reader, _ = _identity.pinned_reader(store, "train")
    table = store.place.table("train", 0, store.train.generations[0].table)
    (kept,) = [
        name
        for name in (sketched / "run" / "identities").iterdir()
        if unseal(name.read_bytes(), "x")["table"] == table
    ]
    content = unseal(kept.read_bytes(), "x")
    assert content["identity"] == store.train.generations[0].identity
    for key, other in (("table", {"path": "else"}), ("signature", []), ("identity", 5)):
        kept.unlink()
        kept.write_bytes(seal({**content, key: other}))
        assert signed_identity(store.storage, reader, table)[0] == content["identity"]


def test_data_written_to_while_it_is_digested_is_refused(tmp_path, monkeypatch):
    write_job(tmp_path, n=96)
    from streamfluence.data.arrays import Arrays

    identity = Arrays.identity

    def slow(self):
        found = identity(self)
        writer = threading.Thread(target=rewrite, args=(tmp_path,))
        writer.start()
        writer.join()
        return found

    monkeypatch.setattr(Arrays, "identity", slow)
    with pytest.raises(InputError, match="changed while it was read"):
        run(tmp_path / "job.toml", str(tmp_path / "run"))


def test_a_checkpoint_written_to_while_it_is_loaded_is_refused(sketched, monkeypatch):
    path = str(sketched / "run")
    session = open_session(path, "cpu")
    session._kept.clear()
    load = type(session.task).model

    def slow(self, checkpoint, trainable=True):
        model = load(self, checkpoint)
        os.utime(checkpoint)
        return model

    monkeypatch.setattr(type(session.task), "model", slow)
    with pytest.raises(InputError, match="written to while it was loaded"):
        _ = AtCheckpoint(session, 1).model
