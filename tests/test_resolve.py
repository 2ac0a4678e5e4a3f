"""Checkpoints as a job names them: found in natural order, and known by every byte that is loaded."""

import numpy as np
import pytest
import torch
from small_job import JOB, write_job

from streamfluence.errors import InputError
from streamfluence.job_parser import load_job
from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.run.checkpoints import checkpoint_facts
from streamfluence.run.opened import OpenRun
from streamfluence.run.resolve import expand, open_run
from streamfluence.run.session import open_session


def globbed(folder, pattern):
    return load_job(write_job(folder, job=JOB.replace("model.pt", pattern)))


def test_checkpoints_of_a_glob_come_in_natural_order(tmp_path):
    job = globbed(tmp_path, "epoch-*.pt")
    for epoch in (10, 9, 100, 1):
        (tmp_path / f"epoch-{epoch}.pt").touch()
    assert expand(job) == [f"epoch-{epoch}.pt" for epoch in (1, 9, 10, 100)]


def test_an_absolute_glob_is_found_and_a_name_with_brackets_is_taken_as_it_is(tmp_path):
    (tmp_path / "model[1].pt").touch()
    assert expand(globbed(tmp_path, "model[1].pt")) == ["model[1].pt"]
    assert expand(globbed(tmp_path, f"{tmp_path}/mod*.pt")) == [
        str(tmp_path / "model.pt"),
        str(tmp_path / "model[1].pt"),
    ]
    with pytest.raises(InputError, match="nothing matches"):
        expand(globbed(tmp_path, f"{tmp_path}/none-*.pt"))


def test_what_a_checkpoint_folder_links_to_is_part_of_it(tmp_path):
    task = "net.load_state_dict(torch.load(checkpoint / 'weights/model.pt', weights_only=True))"
    write_job(tmp_path, job=JOB.replace("model.pt", "checkpoint"))
    source = (tmp_path / "task.py").read_text()
    plain = "module.load_state_dict(torch.load(checkpoint, weights_only=True))"
    (tmp_path / "task.py").write_text(source.replace(plain, task.replace("net.", "module.")))
    (tmp_path / "kept").mkdir()
    (tmp_path / "model.pt").rename(tmp_path / "kept" / "model.pt")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "weights").symlink_to(tmp_path / "kept")
    path = str(tmp_path / "run")
    open_run(load_job(tmp_path / "job.toml"), path)
    state = torch.load(tmp_path / "kept" / "model.pt", weights_only=True)
    torch.save({name: 3 * weight for name, weight in state.items()}, tmp_path / "kept" / "model.pt")
    with pytest.raises(InputError, match="changed since"):
        _ = AtCheckpoint(open_session(path, "cpu"), 0).model


def test_a_checkpoint_folder_that_lies_in_itself_is_refused(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "again").symlink_to(tmp_path / "checkpoint")
    with pytest.raises(InputError, match="links back"):
        checkpoint_facts(tmp_path / "checkpoint")


def test_names_of_groups_are_pinned_with_the_data(tmp_path):
    job = JOB.replace(
        '"train-*.npz"', '"train-*.npz"\ngroup_field = "y"\ngroup_names = "names.json"'
    )
    (tmp_path / "names.json").write_text('["cat", "dog", "eel"]')
    path = str(tmp_path / "run")
    open_run(load_job(write_job(tmp_path, job=job)), path)
    (tmp_path / "names.json").write_text('["dog", "cat", "eel"]')
    with pytest.raises(InputError, match="the data of 'train' changed since"):
        open_session(path, "cpu").reader("train")


def test_a_vocabulary_is_pinned_with_the_tokens(tmp_path):
    np.save(tmp_path / "tokens.npy", np.arange(64, dtype=np.int64) % 5)
    reader = 'reader = "tokens"\npath = "tokens.npy"\nsequence_length = 8\ntext = "words.json"'
    job = JOB.replace('reader = "arrays"\npath = "train-*.npz"', reader)
    (tmp_path / "words.json").write_text('["a", "b", "c", "d", "e"]')
    path = str(tmp_path / "run")
    open_run(load_job(write_job(tmp_path, job=job)), path)
    assert OpenRun.open(path).train.generations[0].identity["shown"]
    (tmp_path / "words.json").write_text('["e", "d", "c", "b", "a"]')
    with pytest.raises(InputError, match="the data of 'train' changed since"):
        open_session(path, "cpu").reader("train")
