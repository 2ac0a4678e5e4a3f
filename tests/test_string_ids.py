"""Ids that are strings: stored as numbers, found again by every command that takes or prints ids."""

import json
from pathlib import Path

import numpy as np
import pytest
import small_job
import zarr
from hypothesis import given
from hypothesis import strategies as st

import streamfluence
from streamfluence.data.arrays import Arrays
from streamfluence.errors import InputError
from streamfluence.stages.evaluate.mislabel import evaluate_mislabel
from streamfluence.stages.evaluate.retrieval import evaluate_retrieval
from streamfluence.stages.export import export
from streamfluence.stages.finalise import finalise
from streamfluence.stages.run import run
from streamfluence.store.text import decode_ids, decode_text, encode_ids, encode_text

JOB = small_job.JOB.replace('path = "train-*.npz"', 'path = "train-*.npz"\nid_field = "key"')


@given(st.lists(st.text(st.characters(), max_size=9).map(lambda text: text.rstrip("\0"))))
def test_encoded_text_is_numbers_and_decodes_to_the_same_strings(strings):
    array = np.array(strings, dtype="U")
    stored = encode_text(array)
    assert stored.dtype == np.uint8 and stored.ndim == 2 and len(stored) == len(strings)
    assert decode_text(stored).tolist() == decode_ids(encode_ids(array)).tolist() == strings


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_whole_ids_are_stored_as_they_are(numbers):
    ids = np.array(numbers, dtype=np.int64)
    assert encode_ids(ids).dtype == np.int64 and decode_ids(encode_ids(ids)).tolist() == numbers


def names(count: int) -> list[str]:
    """Names whose length grows, so that partitions need different widths."""
    return [f"häus/{'x' * (row // 10)}-{row}" for row in range(count)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ids")
    path = small_job.write_job(folder, job=JOB)
    done = 0
    for shard in sorted(folder.glob("train-*.npz")):
        arrays = dict(np.load(shard))
        count = len(arrays["y"])
        np.savez(shard, key=np.array(names(150)[done : done + count], dtype="U40"), **arrays)
        done += count
    run(path, str(folder / "run"))
    return folder


def test_top_and_export_name_examples_by_their_strings(finished):
    listed = streamfluence.open(str(finished / "run")).top("test/0")
    assert listed["helps"]
    for line in listed["helps"] + listed["hurts"]:
        assert line["id"] == names(150)[line["row"]]
    output = finished / "out.jsonl"
    export(str(finished / "run"), str(output))
    for line in map(json.loads, output.read_text().splitlines()[1:]):
        assert line["id"] == names(150)[line["row"]] and line["query_id"] == line["query"]


def test_finalise_makes_one_array_of_partitions_of_different_widths(finished):
    finalise(str(finished / "run"))
    array = zarr.open_group(finished / "run" / "sets" / "train.zarr", mode="r")["example_id"]
    assert decode_text(array[0]).tolist() == names(150)


@pytest.mark.parametrize("suffix", ["json", "txt", "npy"])
def test_lists_of_ids_may_be_strings(finished, suffix):
    path, rows = finished / f"flagged.{suffix}", finished / "rows.json"
    chosen = [149, 3, 40, 41]
    listed = [names(150)[row] for row in chosen]
    rows.write_text(json.dumps(chosen))
    if suffix == "npy":
        np.save(path, np.array(listed))
    else:
        path.write_text(json.dumps(listed) if suffix == "json" else "\n".join(listed))
    assert evaluate_mislabel(str(finished / "run"), str(path), by_id=True) == evaluate_mislabel(
        str(finished / "run"), str(rows)
    )


def test_lists_of_relevant_examples_may_be_strings(finished):
    by_id, by_row = finished / "relevant.json", finished / "relevant_rows.json"
    by_row.write_text(json.dumps({"0": [1, 7], "3": [120]}))
    by_id.write_text(json.dumps({"0": [names(150)[1], names(150)[7]], "3": [names(150)[120]]}))
    found = [
        evaluate_retrieval(str(finished / "run"), relevant=str(path), by_id=path is by_id)
        for path in (by_id, by_row)
    ]
    assert found[0] == found[1]


def test_an_unknown_string_is_named(finished):
    path = finished / "unknown.json"
    path.write_text('["nobody"]')
    with pytest.raises(InputError, match=r"no training example has .nobody"):
        evaluate_mislabel(str(finished / "run"), str(path), by_id=True)


def test_whole_numbers_are_found_in_lists_of_text(tmp_path):
    path = small_job.write_job(tmp_path)
    run(path, str(tmp_path / "run"))
    (tmp_path / "text.txt").write_text("5\n17\n")
    (tmp_path / "rows.json").write_text("[17, 5]")
    assert evaluate_mislabel(
        str(tmp_path / "run"), str(tmp_path / "text.txt"), by_id=True
    ) == evaluate_mislabel(str(tmp_path / "run"), str(tmp_path / "rows.json"))


def test_an_id_beyond_int64_is_refused_not_wrapped_round(tmp_path):
    reader_file = tmp_path / "a.npz"
    np.savez(reader_file, x=np.zeros((2, 1)), key=np.array([1, 2**63 + 5], np.uint64))

    with pytest.raises(InputError, match="strings"):
        Arrays(tmp_path, path="a.npz", id_field="key").example_ids(0, 2)
