"""The python reader: any map-style dataset, and what its identity can and cannot see."""

from pathlib import Path

import numpy as np
import pytest
import torch

from streamfluence.data import open_reader
from streamfluence.errors import InputError

MODULE = """
import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

plain = TensorDataset(torch.arange(10.0).reshape(5, 2), torch.arange(5))

class Squares(Dataset):
    def __init__(self, count=200, changed=-1, version=None):
        self.count, self.changed = count, changed
        if version is not None:
            self.identity = lambda: version
    def __len__(self):
        return self.count
    def __getitem__(self, row):
        return {"x": torch.full((3,), row**2 + (row == self.changed)), "row": row}

class Batched(Squares):
    def __getitems__(self, rows):
        return [super(Batched, self).__getitem__(row) for row in rows]
    def __getitem__(self, row):
        raise AssertionError("one by one")

class Noisy(Squares):
    def __getitem__(self, row):
        return torch.rand(4)

class Ragged(Squares):
    def __getitem__(self, row):
        return torch.arange(row + 1)

class Broken(Squares):
    def __getitem__(self, row):
        if row == 3:
            raise KeyError("no such\\nfile")
        return torch.zeros(1)

class Shown(Squares):
    def preview(self, row):
        return f"row\\n{row}"

class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))

def fails():
    raise RuntimeError("no licence")

def pad(items):
    return torch.nn.utils.rnn.pad_sequence(items, batch_first=True)

def drops(items):
    return torch.zeros(1, 2)

number = 3
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "my_data.py").write_text(MODULE)
    return tmp_path


def reader_of(folder: Path, name: str, **options):
    return open_reader({"reader": "python", "dataset": f"my_data.py:{name}", **options}, folder)


def test_a_torch_dataset_object_is_read_as_torch_collates_it(folder):
    inputs, targets = reader_of(folder, "plain").take([4, 0])
    assert torch.equal(inputs, torch.tensor([[8.0, 9.0], [0.0, 1.0]]))
    assert torch.equal(targets, torch.tensor([4, 0]))


def test_a_class_is_called_with_the_arguments(folder):
    reader = reader_of(folder, "Squares", arguments={"count": 7})
    assert reader.count() == 7
    assert reader.read(2, 4)["x"].tolist() == [[4, 4, 4], [9, 9, 9]]


def test_a_dataset_that_reads_many_items_at_once_is_asked_for_many(folder):
    assert reader_of(folder, "Batched").read(1, 3)["x"].tolist() == [[1, 1, 1], [4, 4, 4]]


def test_items_of_different_lengths_need_a_collate(folder):
    with pytest.raises(InputError, match=r"items 0 to 2 of .*do not collate.*give collate"):
        reader_of(folder, "Ragged").read(0, 3)
    padded = reader_of(folder, "Ragged", collate="my_data.py:pad").read(0, 3)
    assert padded.tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 2]]


def test_a_collate_that_loses_examples_is_refused(folder):
    with pytest.raises(InputError, match=r"3 items of .* collate into 1 examples"):
        reader_of(folder, "Ragged", collate="my_data.py:drops").read(0, 3)


def test_an_installed_module_can_be_named(tmp_path, monkeypatch):
    (tmp_path / "installed_for_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    table = {"reader": "python", "dataset": "installed_for_test:Squares"}
    assert open_reader(table, tmp_path / "elsewhere").count() == 200


@pytest.mark.parametrize(
    "options",
    [
        {"arguments": {"count": 201}},
        {"arguments": {"changed": 0}},
        {"arguments": {"changed": 199}},
        {"arguments": {"version": "v2"}},
        {"identity": "v2"},
        {"collate": "my_data.py:pad"},
    ],
    ids=str,
)
def test_identity_changes_with_what_it_can_see(folder, options):
    name = "Ragged" if "collate" in options else "Squares"
    before = reader_of(
        folder, name, **{k: v for k, v in options.items() if k == "collate"}
    ).identity()
    if "collate" in options:
        (folder / "my_data.py").write_text(
            MODULE.replace("batch_first=True", "batch_first=True, padding_value=1")
        )
    assert reader_of(folder, name, **options).identity() != before


def test_identity_samples_64_items_and_says_so(folder):
    def sampled(changed):
        identity = reader_of(folder, "Squares", arguments={"changed": changed}).identity()
        return identity["sample"]

    whole = sampled(-1)
    assert len(whole) == 64
    changes = [sampled(row) != whole for row in range(0, 200, 9)]
    assert any(changes) and not all(changes)


def test_a_small_dataset_is_digested_whole(folder):
    identity = reader_of(folder, "plain").identity()
    assert len(identity["sample"]) == identity["count"] == 5


def test_random_augmentation_is_found_and_refused(folder):
    with pytest.raises(InputError, match=r"item 0 of .*Noisy differs between two reads"):
        reader_of(folder, "Noisy").identity()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Stream", "Stream gives Stream, which lacks __len__"),
        ("number", "number is neither a dataset nor callable"),
        ("fails", "fails failed: RuntimeError: no licence"),
        ("absent", r"my_data\.py defines no 'absent'"),
    ],
)
def test_what_is_not_a_map_style_dataset_is_refused(folder, name, message):
    with pytest.raises(InputError, match=message):
        reader_of(folder, name).count()


def test_an_item_that_fails_is_named_in_one_line(folder):
    with pytest.raises(
        InputError, match=r"item 3 of my_data\.py:Broken failed: KeyError: "
    ) as caught:
        reader_of(folder, "Broken").read(0, 9)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("my_data.py", "dataset must be 'file.py:name'"),
        ("none.py:make", r"none\.py does not exist"),
        ("torn.py:make", r"torn\.py fails to load: SyntaxError"),
        ("no_such_package.data:make", "no_such_package.data cannot be imported"),
    ],
)
def test_a_reference_that_cannot_be_loaded_is_refused(folder, reference, message):
    (folder / "torn.py").write_text("def make(:")
    with pytest.raises(InputError, match=message):
        open_reader({"reader": "python", "dataset": reference}, folder).count()


def test_two_files_of_one_name_in_two_folders_do_not_mix(tmp_path):
    counts = []
    for count in (2, 3):
        folder = tmp_path / str(count)
        folder.mkdir()
        (folder / "data.py").write_text(f"rows = list(range({count}))")
        counts.append(open_reader({"reader": "python", "dataset": "data.py:rows"}, folder).count())
    assert counts == [2, 3]


def test_the_preview_is_the_datasets_own_or_shows_the_fields(folder):
    assert reader_of(folder, "Shown").preview(5) == "row ⏎ 5"
    assert reader_of(folder, "Squares").preview(5) == "x 25 25 25 | row 5"
    assert reader_of(folder, "plain").preview(1) == "0 2 3 | 1 1"


def test_a_half_precision_item_has_a_preview_and_a_digest(tmp_path):
    (tmp_path / "half.py").write_text("import torch\nrows = torch.ones(4, 2, dtype=torch.bfloat16)")
    reader = open_reader({"reader": "python", "dataset": "half.py:rows"}, tmp_path)
    assert reader.preview(0).strip() == "1 1"
    assert len(reader.identity()["sample"]) == 4


def test_an_empty_dataset_has_an_identity_but_no_batch(tmp_path):
    (tmp_path / "empty.py").write_text("rows = []")
    reader = open_reader({"reader": "python", "dataset": "empty.py:rows"}, tmp_path)
    assert reader.identity()["sample"] == [] and np.array(reader.count()) == 0
    with pytest.raises(InputError, match="has no items"):
        reader.read(0, 0)


def test_the_signature_sees_a_changed_item_of_the_sample(folder):
    before = reader_of(folder, "Squares").stat_signature()
    after = reader_of(folder, "Squares", arguments={"changed": 199}).stat_signature()
    assert before["sample"] != after["sample"]
