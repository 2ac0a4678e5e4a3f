"""The parquet reader against pyarrow's own reading of whole files."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamfluence.data import open_reader
from streamfluence.data._batches import leaves
from streamfluence.errors import InputError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def write(folder: Path, columns: dict, name: str = "a.parquet", **how) -> None:
    parquet.write_table(pa.table(columns), folder / name, **how)


def reader_of(folder: Path, path: str = "*.parquet", **options):
    return open_reader({"reader": "parquet", "path": path, **options}, folder)


def words(count: int) -> list[str]:
    return [f"word {number}" for number in range(count)]


@pytest.fixture(scope="module")
def small_pieces():
    """Row groups of a few rows in several pieces, as those of a million rows are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamfluence.data.parquet._MOST_PIECE_ROWS", 3)
        yield


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.lists(st.integers(0, 40), min_size=1, max_size=3).filter(sum),
    group=st.integers(1, 17),
    data=st.data(),
)
def test_any_order_of_reading_gives_what_the_whole_files_hold(
    tmp_path_factory, small_pieces, files, group, data
):
    folder = tmp_path_factory.mktemp("parquet")
    all_words, total = words(sum(files)), sum(files)
    for number, count in enumerate(files):
        start = sum(files[:number])
        columns = {"n": np.arange(start, start + count), "w": all_words[start : start + count]}
        columns["w"] = pa.array(columns["w"], pa.string())
        write(folder, columns, f"{number}.parquet", row_group_size=group)
    reader = reader_of(folder, id_field="w")
    for rows in data.draw(st.lists(st.lists(st.integers(0, total - 1)), max_size=4)):
        assert reader.take(rows)["n"].tolist() == rows
    start = data.draw(st.integers(0, total))
    assert reader.example_ids(start, total).tolist() == all_words[start:]


def test_types_become_arrays_lists_and_mappings(tmp_path):
    columns = {
        "half": pa.array(np.arange(2, dtype=np.float16)),
        "flag": [True, False],
        "day": pa.array([0, 1], pa.date32()),
        "coded": pa.array(["a", "b"]).dictionary_encode(),
        "raw": [b"\xff", b""],
        "wide": pa.array([[[1, 2]], [[3, 4]]], pa.list_(pa.list_(pa.int16()))),
        "tags": [["a"], []],
        "meta": [{"file": "x", "at": 1}, {"file": "y", "at": 2}],
    }
    write(tmp_path, columns)
    batch = reader_of(tmp_path).read(0, 2)
    assert batch["half"].dtype == np.float16 and batch["flag"].tolist() == [True, False]
    assert batch["day"].astype(str).tolist() == ["1970-01-01", "1970-01-02"]
    assert batch["coded"] == ["a", "b"] and batch["raw"] == [b"\xff", b""]
    assert batch["wide"].tolist() == [[[1, 2]], [[3, 4]]] and batch["wide"].dtype == np.int16
    assert batch["tags"] == [["a"], []]
    assert batch["meta"]["file"] == ["x", "y"] and batch["meta"]["at"].tolist() == [1, 2]
    inner = reader_of(tmp_path, fields=["meta.at"], id_field="meta.file")
    assert inner.read(0, 2)["meta.at"].tolist() == [1, 2]
    assert inner.example_ids(0, 2).tolist() == ["x", "y"]


def test_ids_and_groups_are_whole_numbers_or_strings_and_no_part_of_a_batch(tmp_path):
    columns = {"x": [1.0, 2.0, 3.0], "key": ["c", "a", "a"], "kind": ["dog", "cat", "dog"]}
    write(tmp_path, columns)
    reader = reader_of(tmp_path, id_field="key", group_field="kind")
    assert list(reader.read(0, 3)) == ["x"]
    assert reader.example_ids(0, 3).tolist() == ["c", "a", "a"]
    groups = reader.groups(0, 3)
    assert groups.dtype == np.int64 and reader.own_groups
    assert [reader.group_name(group) for group in groups] == ["dog", "cat", "dog"]
    numbered = reader_of(tmp_path, id_field="x2", group_field="x2")
    write(tmp_path, {**columns, "x2": pa.array([7, 8, 7], pa.uint8())})
    assert numbered.groups(0, 3).tolist() == [7, 8, 7] and numbered.example_ids(0, 0).size == 0
    assert numbered.group_name(7) == "7" and not numbered.own_groups


def test_lists_of_many_lengths_are_padded_to_the_length_that_is_given(tmp_path):
    columns = {
        "input_ids": [[1, 2, 3], [4]],
        "labels": pa.array([[1], []], pa.list_(pa.uint8())),
        "part": pa.array([[0.5], [1.5, 2.5]], pa.list_(pa.float32())),
    }
    write(tmp_path, columns)
    with pytest.raises(InputError, match=r"row 1: column 'input_ids' holds 1 .* give length"):
        reader_of(tmp_path, fields=["input_ids"]).read(0, 2)
    batch = reader_of(tmp_path, length=2).read(0, 2)
    assert batch["input_ids"].tolist() == [[1, 2], [4, 0]]
    assert batch["labels"].tolist() == [[1, -100], [-100, -100]]
    assert batch["part"].tolist() == [[0.5, 0.0], [1.5, 2.5]]
    assert batch["part"].dtype == np.float32


def test_a_preview_shows_texts_and_named_numbers_and_survives_what_a_batch_refuses(tmp_path):
    columns = {
        "text": ["a\nb\x1b[31m" + "é" * 10**6, "x"],
        "n": pa.array([1, None], pa.int64()),
        "odd": pa.array([[1, 2], [3]], pa.list_(pa.int64())),
    }
    write(tmp_path, columns)
    reader = reader_of(tmp_path, fields=["n"], preview=["text", "n", "odd"])
    assert reader.preview(0).startswith("a ⏎ b·[31mé") and len(reader.preview(0)) == 160
    assert reader.preview(1) == "x | n None | odd 3"


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"a": [1, None]}, {}, r"row 1: column 'a' has no value \(null\); fill"),
        ({"a": [[1.0], [None]]}, {}, r"row 1: column 'a' has no value"),
        ({"a": [[1.0], [None]]}, {"length": 2}, r"row 1: column 'a' has no value"),
        ({"a": [{"b": 1}, {"b": None}]}, {}, r"row 1: column 'a' \(b\) has no value"),
        ({"a": [None, None]}, {}, r"row 0: column 'a' has no value"),
        ({"a": pa.array([], pa.null())}, {}, r"column 'a' is null, of which no array"),
        (
            {"a": pa.array([[("k", 1)]] * 2, pa.map_(pa.string(), pa.int8()))},
            {},
            r"column 'a' is map<.*leave it out by `fields`",
        ),
        ({"label": [1, 2]}, {"fields": ["lable"]}, r"no column 'lable'; did you mean 'label'\?"),
        ({"a": [1, 2]}, {"id_field": "a"}, r"holds no column but the id and the group"),
    ],
)
def test_what_no_batch_can_be_made_of_is_refused_in_one_sentence(
    tmp_path, columns, options, message
):
    write(tmp_path, columns)
    reader = reader_of(tmp_path, **options)
    with pytest.raises(InputError, match=message):
        reader.read(0, reader.count())


@pytest.mark.parametrize("field", ["id_field", "group_field"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, 1.0], "must give one whole number or string an example as its (id|group), but is"),
        ([1, None], "row 1: column 'key' has no value"),
        (pa.array([1 << 63, 1], pa.uint64()), "which is no int64; store such ids as strings"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path, field, values, message):
    write(tmp_path, {"x": [1, 2], "key": values})
    reader = reader_of(tmp_path, **{field: "key"})
    with pytest.raises(InputError, match=message):
        (reader.example_ids if field == "id_field" else reader.groups)(0, 2)


def test_files_that_differ_in_a_column_that_is_read_are_refused(tmp_path):
    write(tmp_path, {"x": [1], "w": pa.array(["a"], pa.string())}, "1.parquet")
    columns = {"w": pa.array(["b"], pa.large_string()), "x": pa.array([2.0]), "more": [0]}
    write(tmp_path, columns, "2.parquet")
    with pytest.raises(InputError, match=r"2\.parquet: column 'x' is double, but int64 in .*1\."):
        reader_of(tmp_path).read(0, 2)
    assert reader_of(tmp_path, fields=["w"]).read(0, 2)["w"] == ["a", "b"]
    with pytest.raises(
        InputError, match=r"1\.parquet has no column 'more', which .*2\.parquet has"
    ):
        reader_of(tmp_path, path=["2.parquet", "1.parquet"]).read(0, 2)


def test_a_file_that_is_none_is_named(tmp_path):
    with pytest.raises(InputError, match="no file matches"):
        reader_of(tmp_path).count()
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.parquet is damaged, truncated or not of the format"):
        reader_of(tmp_path).count()
    write(tmp_path, {"text": words(50)}, compression="none", use_dictionary=False)
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content.replace(b"word 0", b"\xff\xffrd 0"))
    with pytest.raises(InputError, match=r"rows 0 to 0: column 'text' holds bytes .* no UTF-8"):
        reader_of(tmp_path).read(0, 50)
    write(tmp_path, {"text": words(5000)}, compression="snappy", use_dictionary=False)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[40:400] = bytes(360)
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.parquet is damaged, truncated or not of the format"):
        reader_of(tmp_path).read(0, 5000)
    twice = pa.table([pa.array([1]), pa.array([2])], names=["x", "x"])
    parquet.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="two columns called 'x'"):
        reader_of(tmp_path).read(0, 1)


def test_a_data_set_without_rows_has_none(tmp_path):
    write(tmp_path, {"x": pa.array([], pa.float32()), "w": pa.array([], pa.string())})
    reader = reader_of(tmp_path)
    batch = reader.read(0, 0)
    assert reader.count() == 0 and batch["x"].shape == (0,) and batch["w"] == []
    assert dict(leaves(reader.take([]))).keys() == {"/x", "/w"}


def test_threads_may_read_while_ids_are_asked_for(tmp_path):
    write(tmp_path, {"x": np.arange(2000), "key": words(2000)}, row_group_size=100)
    reader, wrong = reader_of(tmp_path, id_field="key"), []

    def read(step):
        for start in range(0, 2000, step):
            rows = np.arange(start, min(start + step, 2000))
            same = reader.read(start, rows[-1] + 1)["x"].tolist() == rows.tolist()
            ids = reader.example_ids(start, rows[-1] + 1).tolist()
            wrong.extend([] if same and ids == [f"word {row}" for row in rows] else [start])

    threads = [threading.Thread(target=read, args=(step,)) for step in (37, 53, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_row_group_is_never_held_whole(tmp_path):
    text = [f"{row:06}" + "x" * 300 for row in range(100_000)]  # 30 MB
    write(tmp_path, {"text": text}, compression="none", use_dictionary=False)
    del text
    program = (
        "import sys; from pathlib import Path; from streamfluence.data import open_reader\n"
        "def held(): return int(Path('/proc/self/statm').read_text().split()[1]) * 4\n"
        "reader = open_reader({'reader': 'parquet', 'path': 'a.parquet'}, Path(sys.argv[1]))\n"
        "reader.count()\n"
        "before, grown = held(), 0\n"
        "for start in range(0, 100_000, 1000):\n"
        "    assert len(reader.read(start, start + 1000)['text']) == 1000\n"
        "    grown = max(grown, held() - before)\n"
        "print(grown)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < 20 * 1024, f"{grown} KiB"
