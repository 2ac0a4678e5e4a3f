"""Files that a user gives are read within bounds, by every reader of one."""

import os

import numpy as np
import pytest

from streamfluence import given
from streamfluence.data._preview import Text
from streamfluence.data.arrays import Arrays
from streamfluence.errors import InputError
from streamfluence.evaluation.lists import listed_rows, read_json
from streamfluence.given import file_sha256
from streamfluence.readouts._subsets import open_subsets

READERS = {
    "a list": read_json,
    "subsets": open_subsets,
    "group names": lambda path: Arrays(path.parent, path="x.npz", group_names=path.name),
    "a vocabulary": lambda path: Text(path.parent, path.name),
}


def pipe(path):
    os.mkfifo(path)


MADE = {
    "a pipe": (pipe, "not a file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "not a file"),
    "nested": (lambda path: path.write_text("[" * 100_000), "nested too deeply"),
    "too long": (lambda path: path.write_text("[" + "1," * 600 + "1]"), "bytes of text"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", MADE)
def test_what_has_no_end_or_no_bottom_is_refused_by_its_name(tmp_path, monkeypatch, reader, kind):
    monkeypatch.setattr(given, "MOST_BYTES", 100_001 if kind != "too long" else 1000)
    make, words = MADE[kind]
    make(tmp_path / "given.json")
    with pytest.raises(InputError, match=words) as refused:
        READERS[reader](tmp_path / "given.json")
    assert "given.json" in str(refused.value)


def test_what_is_no_file_has_no_digest(tmp_path):
    for name, make in (("pipe", pipe), ("device", lambda path: path.symlink_to("/dev/zero"))):
        make(tmp_path / name)
        assert file_sha256(tmp_path / name) is None
    assert file_sha256(tmp_path / "nothing") is None


def test_a_list_is_read_as_it_is(tmp_path):
    (tmp_path / "given.json").write_text('[1, 2, "\u00e9"]', encoding="utf-8")
    assert given.read_json(tmp_path / "given.json") == [1, 2, "\u00e9"]


@pytest.mark.parametrize("read", [lambda path: listed_rows(None, str(path), False), open_subsets])
def test_a_header_that_promises_more_than_the_file_holds_takes_no_memory(tmp_path, read):
    path = tmp_path / "given.npy"
    np.lib.format.open_memmap(path, "w+", np.int64, (4,))
    path.write_bytes(path.read_bytes().replace(b"(4,)", b"(10000000000000,)")[:200])
    with pytest.raises(InputError, match="cannot read"):
        read(path)
