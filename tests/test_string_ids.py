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
from streamfluence.evaluation.lists import distinct_ids, whole_numbers
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


def no_text() -> np.ndarray:
    """Three strings, of which one holds a number that is no character."""
    codes = np.array([[97, 98], [97, 0x110000], [99, 0]], np.uint32)
    return codes.view("U2").ravel()


def test_strings_beyond_unicode_are_refused_as_ids_and_shown_in_previews(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 1)), key=no_text())
    with pytest.raises(InputError, match=r"a\.npz: field 'key' holds .* 0x110000"):
        Arrays(tmp_path, path="a.npz", id_field="key").example_ids(0, 3)
    assert (
        Arrays(tmp_path, path="a.npz", preview=["key"]).preview(1) == "a\N{REPLACEMENT CHARACTER}"
    )
    assert Arrays(tmp_path, path="a.npz", preview=["key"]).preview(2) == "c"


@pytest.mark.parametrize(
    "types", [("U1", "U9"), ("U9", "U1"), ("S3", "S9"), ("S9", "U3"), (">U3", "U9")]
)
def test_ids_may_be_wider_in_one_shard_than_in_another(tmp_path, types):
    ids = [["a", "b"], ["c", "d"]] if "U1" in types else [["a", "bä"], ["ccc", "d"]]
    ids = [
        [each.encode() for each in part] if "S" in kind else part
        for part, kind in zip(ids, types, strict=True)
    ]
    wanted = [x.decode() if isinstance(x, bytes) else x for part in ids for x in part]
    for shard, (part, kind) in enumerate(zip(ids, types, strict=True)):
        np.savez(tmp_path / f"s-{shard}.npz", x=np.zeros((2, 1)), key=np.array(part, kind))
    reader = Arrays(tmp_path, path="s-*.npz", id_field="key")
    assert reader.example_ids(0, 4).tolist() == wanted
    assert reader.example_ids(1, 3).tolist() == wanted[1:3]
    assert reader.example_ids(2, 2).tolist() == []
    assert reader.example_ids(0, 4).dtype.isnative


@pytest.mark.parametrize("read", [distinct_ids, whole_numbers])
def test_a_list_of_strings_beyond_unicode_is_refused(read):
    with pytest.raises(InputError, match=r"listed holds .* 0x110000"):
        read(no_text(), "listed")


def test_fields_that_are_no_ids_have_one_width_in_all_shards(tmp_path):
    for shard, kind in enumerate(("U1", "U9")):
        np.savez(tmp_path / f"s-{shard}.npz", x=np.zeros((2, 1)), key=np.array(["a", "b"], kind))
    with pytest.raises(InputError, match="expected str32 scalars"):
        Arrays(tmp_path, path="s-*.npz").count()


@pytest.mark.parametrize("where", ["train", "queries.test"])
@pytest.mark.parametrize("keys", [lambda n: np.linspace(0, 1, n), lambda n: np.zeros((n, 2), int)])
@pytest.mark.parametrize("option", ["id_field", "group_field"])
def test_labels_of_a_wrong_type_are_refused_before_there_is_a_run(tmp_path, where, keys, option):
    job = small_job.JOB.replace(f"[{where}]\n", f'[{where}]\n{option} = "key"\n')
    path = small_job.write_job(tmp_path, job=job)
    for shard in tmp_path.glob("*.npz"):
        arrays = dict(np.load(shard))
        np.savez(shard, key=keys(len(arrays["y"])), **arrays)
    with pytest.raises(InputError, match="field 'key' must hold one whole number"):
        run(path, str(tmp_path / "run"))
    assert not (tmp_path / "run" / "manifest.json").exists()
