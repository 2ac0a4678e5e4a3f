"""The arrays reader: what it reads, what it maps, and how it refuses."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from streamfluence.data import open_reader
from streamfluence.data._npy import npy_header, npz_headers
from streamfluence.errors import InputError


@pytest.fixture
def shards(tmp_path) -> tuple[Path, dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    whole = {
        "image": random.normal(size=(30, 2, 4)).astype(np.float32),
        "label": random.integers(0, 3, 30).astype(np.uint8),
        "key": random.permutation(30) + 1000,
    }
    for shard in range(3):
        part = {name: array[shard * 10 : shard * 10 + 10] for name, array in whole.items()}
        np.savez(tmp_path / f"train-{shard + 9}.npz", **part)
    return tmp_path, whole


def reader_of(folder: Path, **options):
    return open_reader({"reader": "arrays", "path": "train-*.npz", **options}, folder)


def rewrite(path: Path, **changes) -> None:
    content = {**np.load(path), **changes}
    np.savez(path, **{name: array for name, array in content.items() if array is not None})


def test_rows_are_the_saved_ones_in_natural_order_of_the_files(shards):
    folder, whole = shards
    batch = reader_of(folder).read(0, 30)
    assert list(batch) == list(whole)
    for name, array in whole.items():
        assert np.array_equal(batch[name], array) and batch[name].dtype == array.dtype


def test_a_batch_holds_the_chosen_fields_in_their_order(shards):
    folder, whole = shards
    batch = reader_of(folder, fields=["label", "image"]).read(9, 11)
    assert list(batch) == ["label", "image"]
    assert np.array_equal(batch["label"], whole["label"][9:11])


def test_id_and_group_fields_are_int64_and_not_in_a_batch(shards):
    folder, whole = shards
    (folder / "names.json").write_text(json.dumps(["zero", "one"]))
    reader = reader_of(folder, id_field="key", group_field="label", group_names="names.json")
    ids, groups = reader.example_ids(5, 25), reader.groups(5, 25)
    assert list(reader.read(0, 1)) == ["image"]
    assert ids.dtype == groups.dtype == np.int64
    assert np.array_equal(ids, whole["key"][5:25]) and np.array_equal(groups, whole["label"][5:25])
    assert [reader.group_name(group) for group in range(3)] == ["zero", "one", "2"]


def test_without_id_and_group_fields_there_are_none(shards):
    reader = reader_of(shards[0])
    assert reader.example_ids(0, 5) is None and reader.groups(0, 5) is None


def test_a_group_field_that_is_not_one_whole_number_an_example_is_refused(shards):
    reader = reader_of(shards[0], group_field="image")
    with pytest.raises(InputError, match=r"'image' must hold one whole number.*float32.*2x4"):
        reader.groups(0, 5)


def test_a_read_opens_no_shard_but_its_own(shards):
    folder, whole = shards
    reader = reader_of(folder)
    assert reader.count() == 30
    (folder / "train-9.npz").unlink()
    (folder / "train-11.npz").write_bytes(b"")
    assert np.array_equal(reader.read(10, 20)["image"], whole["image"][10:20])
    with pytest.raises(InputError, match=r"train-9\.npz cannot be opened"):
        reader.read(9, 11)


def test_stored_members_are_mapped_and_compressed_ones_are_loaded(tmp_path):
    array = np.arange(5000.0).reshape(100, 50)
    np.savez(tmp_path / "stored.npz", first=np.arange(3), array=array)
    np.savez_compressed(tmp_path / "packed.npz", array=array)
    stored = npz_headers(tmp_path / "stored.npz")["array"]
    packed = npz_headers(tmp_path / "packed.npz")["array"]
    assert isinstance(stored.view(), np.memmap) and not isinstance(packed.view(), np.memmap)
    assert np.array_equal(stored.view(), array) and np.array_equal(packed.view(), array)


@pytest.mark.parametrize("zip64", [True, False])
def test_a_stored_member_is_found_behind_any_local_header(tmp_path, zip64):
    np.save(tmp_path / "a.npy", np.arange(12).reshape(4, 3))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("notes.txt", "not an array")
        with archive.open("deep/a.npy", "w", force_zip64=zip64) as member:
            member.write((tmp_path / "a.npy").read_bytes())
    headers = npz_headers(tmp_path / "a.npz")
    assert list(headers) == ["deep/a"]
    assert np.array_equal(headers["deep/a"].view(), np.arange(12).reshape(4, 3))


@pytest.mark.parametrize("save", [None, np.savez, np.savez_compressed])
def test_every_version_of_the_npy_format_is_read(tmp_path, save):
    """numpy writes version 3 only for records, but what is of it may be any array."""
    values = np.arange(12.0).reshape(6, 2)
    content = io.BytesIO()
    np.lib.format.write_array(content, values, version=(3, 0))
    assert content.getvalue()[6] == 3
    if save is None:
        (tmp_path / "a.npy").write_bytes(content.getvalue())
        found = npy_header(tmp_path / "a.npy")
    else:
        kind = zipfile.ZIP_STORED if save is np.savez else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(tmp_path / "a.npz", "w", kind) as archive:
            archive.writestr("x.npy", content.getvalue())
        found = npz_headers(tmp_path / "a.npz")["x"]
    assert np.array_equal(found.view(), values)


def test_column_major_and_empty_arrays_are_read_as_they_are(tmp_path):
    columns = np.asfortranarray(np.arange(12).reshape(4, 3))
    np.save(tmp_path / "columns.npy", columns)
    np.save(tmp_path / "empty.npy", np.zeros((0, 3), np.int16))
    assert np.array_equal(npy_header(tmp_path / "columns.npy").view(), columns)
    empty = npy_header(tmp_path / "empty.npy").view()
    assert empty.shape == (0, 3) and empty.dtype == np.int16


def test_only_decompressed_shards_are_kept_and_only_two(tmp_path):
    for shard in range(4):
        np.savez_compressed(tmp_path / f"train-{shard}.npz", x=np.full((10, 25), shard, np.float32))
        np.savez(tmp_path / f"flat-{shard}.npz", x=np.full((10, 25), shard, np.float32))
    reader = reader_of(tmp_path)
    reader.read(5, 15)
    for path in tmp_path.glob("train-*"):
        path.unlink()
    assert reader.read(0, 20)["x"].sum() == 250.0  # shards 0 and 1 are still held
    with pytest.raises(InputError, match="train-2"):
        reader.read(20, 21)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": None}, r"train-10\.npz holds the fields image, key, but .*train-9\.npz holds"),
        ({"image": np.zeros((10, 2, 4))}, r"train-10.*'image' is float64 .*expected float32"),
        ({"image": np.zeros((10, 2, 5), np.float32)}, r"'image' is .*shape 2x5.*expected .*2x4"),
        ({"label": np.zeros(9, np.uint8)}, r"train-10.*differ in their number .*label: 9"),
        ({"label": np.uint8(1)}, r"train-10.*'label' is one number"),
        ({"label": np.array([{}] * 10)}, r"train-10.*label\.npy holds Python objects"),
    ],
)
def test_a_shard_unlike_the_first_is_refused(shards, changes, message):
    folder, _ = shards
    rewrite(folder / "train-10.npz", **changes)
    with pytest.raises(InputError, match=message):
        reader_of(folder).count()


@pytest.mark.parametrize("kept", [0, 3, 40, 200, 0.5, -1])
def test_a_truncated_archive_is_refused_with_its_path(shards, kept):
    folder, _ = shards
    path = folder / "train-10.npz"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match=r"train-10\.npz"):
        reader_of(folder).count()


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_a_truncated_npy_file_is_refused_with_its_path(tmp_path, kept):
    np.save(tmp_path / "x.npy", np.arange(100))
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:kept])
    with pytest.raises(InputError, match=r"x\.npy.* truncated"):
        reader_of(tmp_path, path={"x": "x.npy"}).count()


def test_a_shard_cut_short_after_its_header_was_read_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(100_000))
    reader = reader_of(tmp_path, path={"x": "x.npy"})
    assert reader.count() == 100_000
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-8])
    with pytest.raises(InputError, match=r"x\.npy"):
        reader.read(0, 1)


def test_damage_in_a_compressed_shard_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "train-0.npz", x=np.random.default_rng(0).normal(size=(50, 9)))
    content = bytearray((tmp_path / "train-0.npz").read_bytes())
    content[len(content) // 2] ^= 4
    (tmp_path / "train-0.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"train-0\.npz"):
        reader_of(tmp_path).read(0, 50)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "nothing-*.npz"}, r"no file matches .*nothing-\*\.npz"),
        ({"path": ["train-9.npz", "train-*.npz"]}, r"train-9\.npz is named twice"),
        ({"path": {"a": "train-*.npz", "b": "train-9.npz"}}, "one file a shard.*a: 3, b: 1"),
        ({"path": 3}, "path must be a string or a list of strings, not 3"),
        ({"path": []}, "path is an empty list"),
        ({"path": {}}, "one file a shard"),
        ({"fields": ["picture"]}, "no field 'picture'; there are: image, label, key"),
        ({"id_field": 3}, "id_field must be a string"),
        ({"text": "words.json"}, r"words\.json cannot be opened"),
    ],
)
def test_wrong_options_are_refused(shards, options, message):
    with pytest.raises(InputError, match=message):
        reader_of(shards[0], **options).read(0, 1)


def test_an_npy_file_without_a_field_is_refused_with_the_way_to_name_it(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(3))
    with pytest.raises(InputError, match=r"path = \{ image = "):
        reader_of(tmp_path, path="x.npy").count()


def test_a_preview_shows_numbers_ranges_and_text(tmp_path):
    tokens = np.full((2, 40), -100, np.int16)
    tokens[0, :22] = np.frombuffer(b"def f(x):\n    return x", np.uint8)
    names = np.array(["a\x1b[31m", "b"])
    np.savez(
        tmp_path / "train-0.npz",
        tokens=tokens,
        name=names,
        image=np.eye(4)[None].repeat(2, 0),
        n=[3, 4],
    )
    shown = reader_of(tmp_path, preview=["name", "tokens", "n", "image"], text="bytes").preview(0)
    assert shown == "a·[31m | def f(x): ⏎ return x | n 3 | image 4x4 in [0, 1]"
    assert "in [-100, 120]" in reader_of(tmp_path).preview(0)


def test_a_preview_decodes_with_a_vocabulary(tmp_path):
    (tmp_path / "vocabulary.json").write_text(json.dumps({"hello": 0, " world": 7}))
    np.savez(tmp_path / "train-0.npz", tokens=np.array([[0, 7, 7, 9]]))
    shown = reader_of(tmp_path, text="vocabulary.json").preview(0)
    assert shown == "hello world world\N{REPLACEMENT CHARACTER}"


def test_a_long_preview_is_cut(tmp_path):
    np.savez(tmp_path / "train-0.npz", name=np.array(["x" * 500]))
    shown = reader_of(tmp_path).preview(0)
    assert len(shown) == 160 and shown.endswith("x…")
