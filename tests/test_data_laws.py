"""Laws of every reader: reads compose, take equals read, identity follows the bytes."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from streamfluence import registry
from streamfluence.data import open_reader
from streamfluence.data._batches import concatenate, leaves, map_batch
from streamfluence.errors import InputError

COUNT = 23
SHARD_ROWS = (7, 0, 5, 11)
MODULE = """
import numpy as np

class Items:
    def __len__(self):
        return {count}

    def __getitem__(self, row):
        return {{"x": np.arange(3) + row / 8, "label": row % 3, "name": f"item {{row}}"}}

def make():
    return Items()

LAST_BYTE = 1"""


def write_npz(folder: Path, save) -> dict:
    random = np.random.default_rng(0)
    for shard, rows in enumerate(SHARD_ROWS):
        image = random.normal(size=(rows, 2, 3)).astype(np.float32)
        save(folder / f"x-{shard + 8}.npz", image=image, label=random.integers(0, 9, rows))
    return {"reader": "arrays", "path": "x-*.npz"}


def make_arrays_npz(folder: Path) -> dict:
    return write_npz(folder, np.savez)


def make_arrays_compressed(folder: Path) -> dict:
    return write_npz(folder, np.savez_compressed)


def make_arrays_npy(folder: Path) -> dict:
    random = np.random.default_rng(0)
    for shard, rows in enumerate(SHARD_ROWS):
        wide = random.normal(size=(rows, 2, 3))
        np.save(folder / f"wide-{shard + 8}.npy", np.asfortranarray(wide))
        np.save(folder / f"flat-{shard + 8}.npy", random.integers(0, 9, rows).astype(">i4"))
    return {"reader": "arrays", "path": {"wide": "wide-*.npy", "flat": "flat-*.npy"}}


def make_tokens(folder: Path) -> dict:
    random = np.random.default_rng(0)
    for shard, rows in enumerate(SHARD_ROWS):
        np.save(
            folder / f"t-{shard + 8}.npy", random.integers(0, 250, rows * 4 + 3).astype(np.uint8)
        )
    return {"reader": "tokens", "path": "t-*.npy", "sequence_length": 4}


def make_tokens_raw(folder: Path) -> dict:
    random = np.random.default_rng(0)
    (folder / "t.bin").write_bytes(random.integers(0, 60000, COUNT * 3 + 3).astype("<u2").tobytes())
    table = {"sequence_length": 5, "stride": 3, "next_token": True, "dtype": "uint16"}
    return {"reader": "tokens", "path": "t.bin", **table}


def make_python(folder: Path) -> dict:
    (folder / "my_data.py").write_text(MODULE.format(count=COUNT))
    return {"reader": "python", "dataset": "my_data.py:make"}


def make_parquet(folder: Path) -> dict:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    random = np.random.default_rng(0)
    for shard, rows in enumerate(SHARD_ROWS):
        columns = {
            "x": pa.array(random.normal(size=(rows, 3)).tolist(), pa.list_(pa.float32())),
            "label": random.integers(0, 9, rows),
            "text": pa.array([f"{shard} and {row}" for row in range(rows)], pa.string()),
            "meta": pa.array([{"at": row} for row in range(rows)], pa.struct({"at": pa.int16()})),
        }
        parquet.write_table(pa.table(columns), folder / f"x-{shard + 8}.parquet", row_group_size=4)
    return {"reader": "parquet", "path": "x-*.parquet"}


def make_jsonl(folder: Path) -> dict:
    pytest.importorskip("pyarrow")
    random = np.random.default_rng(0)
    for shard, rows in enumerate(SHARD_ROWS):
        lines = [
            {"x": each.tolist(), "label": row % 3, "meta": {"name": f"{shard}/{row}"}, "end": "m"}
            for row, each in enumerate(random.normal(size=(rows, 2, 2)))
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"x-{shard + 8}.jsonl").write_text(text)
    return {"reader": "jsonl", "path": "x-*.jsonl"}


def make_huggingface(folder: Path) -> dict:
    """Files as save_to_disk writes them; test_data_huggingface.py has those of the library itself."""
    pa, names = pytest.importorskip("pyarrow"), []
    for shard, rows in enumerate(SHARD_ROWS):
        columns = {
            "x": np.arange(rows) + shard / 8,
            "text": [f"m {shard} {n}" for n in range(rows)],
        }
        table = pa.table({**columns, "text": pa.array(columns["text"], pa.string())})
        names.append({"filename": f"data-{shard}.arrow"})
        with pa.ipc.new_stream(folder / f"data-{shard}.arrow", table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    (folder / "state.json").write_text(json.dumps({"_data_files": names}))
    return {"reader": "huggingface", "path": "."}


def make_text_lines(folder: Path) -> dict:
    pytest.importorskip("pyarrow")
    for shard, rows in enumerate(SHARD_ROWS):
        text = "\n".join(f"line {shard}-{row} ü" for row in range(rows))
        (folder / f"x-{shard + 8}.txt").write_text(text)
    return {"reader": "text", "path": "x-*.txt"}


def make_text_files(folder: Path) -> dict:
    pytest.importorskip("pyarrow")
    for number in range(COUNT):
        (folder / f"{number}.txt").write_text(f"file\n{number}")
    return {"reader": "text", "path": "*.txt", "unit": "file"}


def make_text_tokens(folder: Path) -> dict:
    tokenizers = pytest.importorskip("tokenizers")
    table = make_text_lines(folder)
    letters = {letter: number for number, letter in enumerate("[]0123456789-")}
    splitter = tokenizers.pre_tokenizers.Split("", "isolated")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters, unk_token="["))
    made.pre_tokenizer = splitter
    (folder / "model").mkdir()
    made.save(str(folder / "model" / "tokenizer.json"))
    return {**table, "tokenizer": "model", "length": 16}


MAKERS = [
    make_parquet,
    make_jsonl,
    make_huggingface,
    make_text_lines,
    make_text_files,
    make_text_tokens,
    make_arrays_npz,
    make_arrays_compressed,
    make_arrays_npy,
    make_tokens,
    make_tokens_raw,
    make_python,
]


def other_members() -> list[str]:
    """Members whose files this test does not know how to make; they have laws of their own."""
    return ["webdataset"]


@pytest.fixture(params=MAKERS, ids=lambda make: make.__name__[5:])
def made(request, tmp_path) -> tuple[Path, dict]:
    return tmp_path, request.param(tmp_path)


def assert_same(a, b) -> None:
    left, right = dict(leaves(a)), dict(leaves(b))
    assert left.keys() == right.keys() and left
    for place, leaf in left.items():
        assert type(leaf) is type(right[place])
        assert np.array_equal(np.asarray(leaf), np.asarray(right[place])), place
        if not isinstance(leaf, list):
            assert leaf.dtype == right[place].dtype and leaf.shape == right[place].shape


def flip_one_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def harmless_place(path: Path) -> int:
    """A byte whose change leaves the file readable: of a value, or a time in an archive."""
    modification_time_in_first_local_header, in_the_first_page = 10, 40
    places = {".npz": modification_time_in_first_local_header, ".parquet": in_the_first_page}
    places |= {".jsonl": path.read_bytes().find(b"m"), ".arrow": path.read_bytes().find(b"m ")}
    return places.get(path.suffix, path.stat().st_size - 1)


def holds_data(path: Path) -> bool:
    empty = path.is_file() and path.suffix == ".npy" and np.load(path).size == 0
    empty |= path.suffix == ".arrow" and b"m " not in path.read_bytes()
    return path.is_file() and path.stat().st_size > 0 and path.name != "state.json" and not empty


def test_every_member_has_a_maker_here_or_laws_of_its_own():
    made_here = {make.__name__.split("_")[1] for make in MAKERS}
    assert made_here | set(other_members()) >= set(registry.names("data"))


def test_count_is_the_number_of_examples(made):
    assert open_reader(made[1], made[0]).count() == COUNT


@pytest.mark.parametrize("cut", [0, 1, 7, 12, 22, 23])
def test_reads_compose(made, cut):
    reader = open_reader(made[1], made[0])
    parts = [reader.read(0, cut), reader.read(cut, COUNT)]
    assert_same(concatenate(parts), reader.read(0, COUNT))


def test_take_equals_reads_in_any_order_and_with_repeats(made):
    reader = open_reader(made[1], made[0])
    rows = np.array([22, 0, 6, 7, 7, 11, 12, 3])
    one_by_one = concatenate([reader.read(int(row), int(row) + 1) for row in rows])
    assert_same(reader.take(rows), one_by_one)
    assert_same(reader.take(rows.tolist()), one_by_one)


def test_rows_differ_so_that_these_laws_can_fail(made):
    reader = open_reader(made[1], made[0])
    batch = reader.read(0, COUNT)
    rows = {
        tuple(np.asarray(leaf[row]).tobytes() for _, leaf in leaves(batch)) for row in range(COUNT)
    }
    assert len(rows) == COUNT


def test_a_batch_is_writable_and_its_change_does_not_reach_the_data(made):
    reader = open_reader(made[1], made[0])
    before = reader.read(0, COUNT)
    map_batch(
        lambda array: array.fill_(0) if isinstance(array, torch.Tensor) else array.fill(0),
        reader.read(0, COUNT),
    )
    assert_same(reader.read(0, COUNT), before)


@pytest.mark.parametrize("rows", [(-1, 2), (5, 4), (0, COUNT + 1), (COUNT + 1, COUNT + 2)])
def test_rows_outside_the_data_set_are_refused(made, rows):
    reader = open_reader(made[1], made[0])
    with pytest.raises(InputError, match=rf"rows {rows[0]} to {rows[1]} .* {COUNT} examples"):
        reader.read(*rows)


@pytest.mark.parametrize("row", [-1, COUNT])
def test_a_row_outside_the_data_set_cannot_be_taken(made, row):
    with pytest.raises(InputError, match=f"row {row} .* {COUNT} examples"):
        open_reader(made[1], made[0]).take([0, row])


def test_identity_is_json_and_equal_for_two_readers_and_after_a_touch(made):
    folder, table = made
    first = open_reader(table, folder).identity()
    for path in folder.iterdir():
        if path.is_file():
            os.utime(path, ns=(1, 1))
    assert json.loads(json.dumps(open_reader(table, folder).identity())) == json.loads(
        json.dumps(first)
    )


def test_identity_changes_with_any_flipped_bit_of_any_file(made):
    folder, table = made
    for path in sorted(path for path in folder.iterdir() if holds_data(path)):
        before = open_reader(table, folder).identity()
        flip_one_bit(path, harmless_place(path))
        assert open_reader(table, folder).identity() != before, path


def test_a_signature_is_json_stable_and_changes_with_a_touch(made):
    folder, table = made
    reader = open_reader(table, folder)
    before = reader.stat_signature()
    assert json.loads(json.dumps(before)) == open_reader(table, folder).stat_signature()
    for path in folder.iterdir():
        if path.is_file():
            os.utime(path, ns=(1, 1))
    assert open_reader(table, folder).stat_signature() != before


def test_identity_changes_with_the_order_of_the_files(tmp_path):
    table = make_arrays_npz(tmp_path)
    forward = [f"x-{n}.npz" for n in (8, 9, 10, 11)]
    natural = open_reader(table, tmp_path).identity()
    assert open_reader({**table, "path": forward}, tmp_path).identity() == natural
    assert open_reader({**table, "path": forward[::-1]}, tmp_path).identity() != natural


def test_a_moved_folder_keeps_its_identity(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    table = make_tokens(here)
    before = open_reader(table, here).identity()
    here.rename(there)
    assert open_reader(table, there).identity() == before


def test_preview_is_one_printable_line(made):
    reader = open_reader(made[1], made[0])
    lines = [reader.preview(row) for row in range(COUNT)]
    assert all(line and line.isprintable() for line in lines)
    assert len(set(lines)) > COUNT // 2


def test_an_unknown_option_is_refused_with_the_known_ones(made):
    folder, table = made
    first_option = "dataset" if table["reader"] == "python" else "path"
    with pytest.raises(InputError, match=f"no option 'shuffle'; it knows: .*{first_option}"):
        open_reader({**table, "shuffle": True}, folder)


def test_the_measurement_of_a_query_set_is_not_a_reader_option(made):
    assert open_reader({**made[1], "measurement": "loss"}, made[0]).count() == COUNT


def test_a_missing_required_option_is_named(tmp_path):
    with pytest.raises(InputError, match="needs sequence_length"):
        open_reader({"reader": "tokens", "path": "x"}, tmp_path)


def test_an_unknown_reader_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(InputError, match=r"arrays.*python.*tokens"):
        open_reader({"reader": "csv"}, tmp_path)


def test_a_table_without_a_reader_is_refused(tmp_path):
    with pytest.raises(InputError, match="reader = NAME"):
        open_reader({"path": "x"}, tmp_path)
