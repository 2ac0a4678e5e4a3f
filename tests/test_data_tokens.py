"""The tokens reader against a slow, literal cutting of the stream."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamfluence.data import open_reader
from streamfluence.errors import InputError


def reader_of(folder: Path, **options):
    table = {"reader": "tokens", "path": "t-*.npy", "sequence_length": 4, **options}
    return open_reader(table, folder)


def cut_slowly(
    shards: list[list[int]], window: int, stride: int
) -> list[tuple[int, int, list[int]]]:
    """Return (shard, first token's place in the stream, tokens) of every sequence."""
    sequences, before = [], 0
    for number, shard in enumerate(shards):
        start = 0
        while start + window <= len(shard):
            sequences.append((number, before + start, shard[start : start + window]))
            start += stride
        before += len(shard)
    return sequences


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=4),
    sequence_length=st.integers(1, 9),
    stride=st.integers(1, 9),
    next_token=st.booleans(),
    data=st.data(),
)
def test_sequences_and_documents_equal_a_literal_cutting(
    tmp_path_factory, lengths, sequence_length, stride, next_token, data
):
    folder = tmp_path_factory.mktemp("tokens")
    stream = iter(range(10**6))
    shards = [[next(stream) for _ in range(length)] for length in lengths]
    for number, shard in enumerate(shards):
        np.save(folder / f"t-{number}.npy", np.array(shard, np.uint32))
    total = sum(lengths)
    inner = data.draw(st.lists(st.integers(0, total), max_size=4))
    starts = [0, *sorted(inner)]
    sidecar = {"starts": starts, "names": [f"file {number}" for number in range(len(starts))]}
    (folder / "documents.json").write_text(json.dumps(sidecar))
    reader = reader_of(
        folder,
        sequence_length=sequence_length,
        stride=stride,
        next_token=next_token,
        documents="documents.json",
    )

    expected = cut_slowly(shards, sequence_length + next_token, stride)
    documents = [
        max(d for d, start in enumerate(starts) if start <= place) for _, place, _ in expected
    ]

    assert reader.count() == len(expected)
    batch = reader.read(0, reader.count())["tokens"]
    assert batch.dtype == np.int64 and batch.shape == (len(expected), sequence_length + next_token)
    assert batch.tolist() == [tokens for _, _, tokens in expected]
    assert reader.groups(0, reader.count()).tolist() == documents
    without = reader_of(
        folder, sequence_length=sequence_length, stride=stride, next_token=next_token
    )
    assert without.groups(0, reader.count()).tolist() == [shard for shard, _, _ in expected]


def test_every_token_but_a_shards_first_is_a_target_once(tmp_path):
    np.save(tmp_path / "t-0.npy", np.arange(13))
    batch = reader_of(tmp_path, next_token=True).read(0, 3)["tokens"]
    assert batch[:, 1:].ravel().tolist() == list(range(1, 13))


def test_raw_files_are_read_with_their_type(tmp_path):
    tokens = np.arange(60_000, 60_010)
    (tmp_path / "t.bin").write_bytes(tokens.astype("<u2").tobytes())
    batch = reader_of(tmp_path, path="t.bin", dtype="uint16").read(0, 2)["tokens"]
    assert batch.tolist() == tokens[:8].reshape(2, 4).tolist()


def test_documents_in_an_npz_file_name_the_groups(tmp_path):
    np.save(tmp_path / "t-0.npy", np.arange(12))
    np.savez(tmp_path / "documents.npz", starts=[0, 5], names=["a.py", "b.py"])
    reader = reader_of(tmp_path, documents="documents.npz")
    assert [reader.group_name(group) for group in reader.groups(0, 3)] == ["a.py", "a.py", "b.py"]


def test_without_documents_a_group_is_named_after_its_file(tmp_path):
    np.save(tmp_path / "t-3.npy", np.arange(12))
    reader = reader_of(tmp_path)
    assert reader.group_name(int(reader.groups(0, 1)[0])) == "t-3.npy"


def test_a_changed_document_table_changes_the_identity(tmp_path):
    np.save(tmp_path / "t-0.npy", np.arange(12))
    path = tmp_path / "documents.json"
    path.write_text(json.dumps({"starts": [0, 5], "names": ["a", "b"]}))
    before = reader_of(tmp_path, documents="documents.json").identity()
    path.write_text(json.dumps({"starts": [0, 6], "names": ["a", "b"]}))
    assert reader_of(tmp_path, documents="documents.json").identity() != before


@pytest.mark.parametrize(
    "options", [{"sequence_length": 3}, {"stride": 3}, {"next_token": True}], ids=str
)
def test_the_identity_says_how_the_stream_is_cut(tmp_path, options):
    np.save(tmp_path / "t-0.npy", np.arange(13))
    assert reader_of(tmp_path, **options).identity() != reader_of(tmp_path).identity()


def test_previews_decode_bytes_and_vocabularies_or_show_numbers(tmp_path):
    np.save(tmp_path / "t-0.npy", np.frombuffer("né\n".encode(), np.uint8))
    (tmp_path / "v.json").write_text(json.dumps([f"<{n}>" for n in range(256)]))
    assert reader_of(tmp_path, text="bytes").preview(0) == "né"
    assert reader_of(tmp_path, text="v.json").preview(0) == "<110><195><169><10>"
    assert reader_of(tmp_path).preview(0) == "110 195 169 10"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4), np.int64), r"t-0\.npy must be a flat array .*int64 of shape \(4, 4\)"),
        (np.zeros(9), r"t-0\.npy must be a flat array of whole numbers, but is float64"),
    ],
)
def test_an_array_that_is_no_token_stream_is_refused(tmp_path, array, message):
    np.save(tmp_path / "t-0.npy", array)
    with pytest.raises(InputError, match=message):
        reader_of(tmp_path).count()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence_length": 0}, "sequence_length must be a whole number above 0, not 0"),
        ({"sequence_length": True}, "sequence_length must be"),
        ({"stride": -1}, "stride must be"),
        ({"next_token": "yes"}, "next_token must be true or false"),
        ({"dtype": "float32"}, "dtype must be a whole-number type"),
        ({"dtype": "tokens"}, "dtype must be a whole-number type"),
        ({"dtype": "uint8"}, r"t-0\.npy holds int64, but dtype = 'uint8'"),
        ({"path": "t.bin"}, r"t\.bin is a raw file; say its type"),
        ({"path": "t.bin", "dtype": "uint16"}, r"t\.bin has 7 bytes.*uint16.*truncated"),
        ({"documents": "none.json"}, r"none\.json cannot be opened"),
        ({"documents": "short.json"}, "2 starts and 1 names"),
        ({"documents": "late.json"}, "last document starts at 99 of 9 tokens"),
        ({"documents": "list.json"}, r"list\.json must be \{"),
        ({"documents": "torn.json"}, r"torn\.json is damaged"),
    ],
)
def test_wrong_options_are_refused(tmp_path, options, message):
    np.save(tmp_path / "t-0.npy", np.arange(9))
    (tmp_path / "t.bin").write_bytes(b"1234567")
    (tmp_path / "short.json").write_text('{"starts": [0, 4], "names": ["a"]}')
    (tmp_path / "late.json").write_text('{"starts": [0, 99], "names": ["a", "b"]}')
    (tmp_path / "list.json").write_text("[0, 4]")
    (tmp_path / "torn.json").write_text('{"starts": [0')
    with pytest.raises(InputError, match=message):
        reader_of(tmp_path, **options).groups(0, 1)
