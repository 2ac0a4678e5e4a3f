"""The huggingface reader on folders that ``datasets`` wrote, against what it reads itself."""

import json
import warnings

import numpy as np
import pytest
from saved_models import save_tokenizer

from streamfluence.data import open_reader
from streamfluence.errors import InputError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()

WORDS = ["the cat", "dogs ran", "a mat", "home again"]


def reader_of(folder, **options):
    return open_reader({"reader": "huggingface", "path": "saved", **options}, folder)


@pytest.fixture
def saved():
    """A data set of 40 rows with classes, ids and vectors."""
    columns = {
        "text": [f"{WORDS[row % 4]} {row}" for row in range(40)],
        "label": [row % 3 for row in range(40)],
        "key": [f"key-{row}" for row in range(40)],
        "vector": [[row / 2, 1.0] for row in range(40)],
        "grid": [[[row, 1], [2, 3]] for row in range(40)],
    }
    kinds = {
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["bad", "good", "none"]),
        "key": datasets.Value("string"),
        "vector": datasets.Sequence(datasets.Value("float32"), length=2),
        "grid": datasets.Array2D((2, 2), "int32"),
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


@pytest.mark.filterwarnings("ignore")
def test_rows_are_those_that_datasets_reads(saved, tmp_path):
    saved = saved.shuffle(seed=0).select(range(30))  # rows in the order of an index
    saved.save_to_disk(tmp_path / "saved", num_shards=3)
    reader = reader_of(tmp_path, id_field="key", group_field="label")
    rows = [29, 0, 7, 7, 13]
    batch, expected = reader.take(rows), saved[rows]
    assert reader.count() == 30 and batch["text"] == expected["text"]
    assert batch["vector"].tolist() == expected["vector"] and batch["vector"].dtype == np.float32
    assert batch["grid"].tolist() == expected["grid"]
    assert reader.example_ids(0, 30).tolist() == saved["key"][:]
    names = [reader.group_name(int(group)) for group in reader.groups(0, 30)]
    assert names == [saved.features["label"].int2str(label) for label in saved["label"]]
    assert not reader.own_groups  # a class is the same in every part of the data


@pytest.mark.filterwarnings("ignore")
def test_a_split_is_named_and_tokenised(saved, tmp_path):
    fast = save_tokenizer(tmp_path / "model")
    datasets.DatasetDict({"train": saved, "test": saved.select([5])}).save_to_disk(
        tmp_path / "saved"
    )
    options = {"tokenizer": "model", "text_field": "text", "length": 4, "fields": ["label"]}
    batch = reader_of(tmp_path, split="test", **options).read(0, 1)
    assert batch["label"].tolist() == [2]
    assert batch["input_ids"][0, :3].tolist() == fast("dogs ran 5")["input_ids"]
    for split in ({}, {"split": "tests"}):
        with pytest.raises(InputError, match="holds train, test; name one: split = NAME"):
            reader_of(tmp_path, **split).count()


@pytest.mark.filterwarnings("ignore")
def test_what_datasets_did_not_write_is_refused(saved, tmp_path):
    (tmp_path / "saved").mkdir()
    with pytest.raises(InputError, match=r"holds no state\.json; .* written by save_to_disk"):
        reader_of(tmp_path).count()
    for content in ("[]", "{}", "{"):
        (tmp_path / "saved" / "state.json").write_text(content)
        with pytest.raises(InputError, match=r"state\.json is damaged"):
            reader_of(tmp_path).count()
    for name in ("../saved/x.arrow", "/etc/passwd"):
        state = {"_data_files": [{"filename": name}]}
        (tmp_path / "saved" / "state.json").write_text(json.dumps(state))
        with pytest.raises(InputError, match="names no data files beside it"):
            reader_of(tmp_path).count()
    saved.save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match="holds no splits; leave out `split`"):
        reader_of(tmp_path, split="train").count()
    (file,) = (tmp_path / "saved").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:900])
    with pytest.raises(InputError, match=r"arrow is damaged, truncated or not of the format"):
        reader_of(tmp_path).count()
