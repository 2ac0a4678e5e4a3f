"""Lines, JSON lines and tokens, against Python's own reading and transformers' tokenizers."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saved_models import WORDS, save_tokenizer

from streamfluence.data import open_reader
from streamfluence.errors import InputError

pa = pytest.importorskip("pyarrow")


def reader_of(folder: Path, path: str, **options):
    kind = "jsonl" if path.endswith("jsonl") else "text"
    return open_reader({"reader": kind, "path": path, **options}, folder)


def write_lines(folder: Path, rows: list) -> None:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(st.characters(exclude_characters="\n\r", codec="utf-8")), max_size=300),
    ends=st.sampled_from(["\n", "\r\n"]),
    closed=st.booleans(),
    data=st.data(),
)
def test_lines_in_any_order_are_those_of_the_file(tmp_path_factory, texts, ends, closed, data):
    folder = tmp_path_factory.mktemp("lines")
    texts = [text.removeprefix("\ufeff") if row == 0 else text for row, text in enumerate(texts)]
    content = ends.join(texts) + (ends if closed and texts else "")
    (folder / "a.txt").write_bytes(content.encode())
    expected = content.split("\n")
    expected = [line.removesuffix("\r") for line in expected[: len(expected) - (not expected[-1])]]
    reader = reader_of(folder, "a.txt")
    assert reader.count() == len(expected)
    assert reader.read(0, reader.count())["text"] == expected
    if expected:
        rows = data.draw(st.lists(st.integers(0, len(expected) - 1)))
        assert reader.take(rows)["text"] == [expected[row] for row in rows]


def test_lines_far_into_a_large_file_are_found_from_the_nearest_place(tmp_path):
    lines = [f"{row:06}" + "ü" * (row % 50) for row in range(40_000)]  # 2 MB
    (tmp_path / "a.txt").write_text("\n".join(lines))
    rows = [39_999, 0, 63, 64, 65, 20_000, 31_234]
    assert reader_of(tmp_path, "a.txt").take(rows)["text"] == [lines[row] for row in rows]


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\ntwo")
    assert reader_of(tmp_path, "a.txt").read(0, 2)["text"] == ["one", "two"]
    assert reader_of(tmp_path, "a.txt", unit="file").read(0, 1)["text"] == ["one\ntwo"]


def test_the_group_of_a_line_is_its_file_and_of_a_file_its_folder(tmp_path):
    for name in ("b/2.txt", "a/10.txt", "a/9.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x\n" * (2 if name == "a/9.txt" else 1))
    lines = reader_of(tmp_path, "*/*.txt")
    assert lines.example_ids(0, 4) is None
    names = [lines.group_name(int(group)) for group in lines.groups(0, 4)]
    assert names == ["a/9.txt", "a/9.txt", "a/10.txt", "b/2.txt"]
    files = reader_of(tmp_path, "*/*.txt", unit="file")
    assert files.example_ids(0, 3).tolist() == ["a/9.txt", "a/10.txt", "b/2.txt"]
    assert [files.group_name(int(group)) for group in files.groups(0, 3)] == ["a", "a", "b"]
    before = files.identity()
    (tmp_path / "a").rename(tmp_path / "c")
    assert reader_of(tmp_path, "*/*.txt", unit="file").identity() != before


def test_objects_become_fields_with_the_types_of_the_first(tmp_path):
    rows = [
        {"n": 1, "x": 1, "t": "a", "v": [1, 2], "m": {"f": "q"}, "ok": True},
        {"n": 2, "x": 0.5, "t": "b", "v": [3, 4], "m": {"f": "r"}, "ok": False},
    ]
    write_lines(tmp_path, rows)
    reader = reader_of(tmp_path, "a.jsonl", id_field="m.f", group_field="t")
    batch = reader.read(0, 2)
    assert batch["n"].dtype == np.int64 and batch["x"].tolist() == [1.0, 0.5]
    assert batch["v"].tolist() == [[1, 2], [3, 4]] and batch["ok"].tolist() == [True, False]
    assert batch["m"]["f"] == ["q", "r"] == reader.example_ids(0, 2).tolist()
    assert reader.groups(0, 2).tolist() == [0, 1]
    assert reader.read(0, 1)["x"].dtype == np.float64


FILLER = [json.dumps({"a": 1})] * 1000


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], r"line 1 of .*a\.jsonl is no JSON that can be read"),
        (['{"a": 1}', ""], r"line 2 of .* is no JSON"),
        (["[" * 100_000], r"line 1 of .* is no JSON"),
        (["[1]"], r"line 1 of .* holds list, but every line must hold one JSON object"),
        (['{"a": 1}', '{"a": "x"}'], r"the first 2 objects differ in what 'a' is"),
        (['{"a": 1}', '{"b": 1}'], r"row 0: column 'b' has no value"),
        (['{"a": 99999999999999999999}'], r"differ in what 'a' is .*write it alike"),
        (['{"a": "\\ud800"}'], r"differ in what 'a' is"),
        ([*FILLER, '{"a": 0.5}'], r"line 1,001 of .*: 'a' is int64 in the first lines, but 0\.5"),
        ([*FILLER, '{"a": "x"}'], r"line 1,001 of .*: 'a' is int64 in the first lines, but 'x'"),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path, lines, message):
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    reader = reader_of(tmp_path, "a.jsonl")
    with pytest.raises(InputError, match=message):
        reader.read(0, reader.count())


def test_bytes_that_are_no_text_are_named_by_line(tmp_path):
    for name in ("a.txt", "a.jsonl"):
        (tmp_path / name).write_bytes(b"{}\n\xff\n")
        with pytest.raises(InputError, match=rf"line 2 of .*{name} is no UTF-8 text"):
            reader_of(tmp_path, name).read(0, 2)
    with pytest.raises(InputError, match=r"a\.txt is no UTF-8 text"):
        reader_of(tmp_path, "a.txt", unit="file").read(0, 1)


def test_files_without_lines_are_no_examples(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "a.txt").write_text("")
    assert reader_of(tmp_path, "a.txt").count() == reader_of(tmp_path, "a.jsonl").count() == 0
    assert reader_of(tmp_path, "a.txt").read(0, 0) == {"text": []}


@pytest.mark.parametrize("kind", ["words", "bytes", "marked"])
def test_tokens_are_those_of_transformers(tmp_path, kind):
    fast = save_tokenizer(tmp_path / "model", kind)
    texts = ["the cat", "dogs ran home again with bones on the mat", "", "a ünknown mat"]
    write_lines(tmp_path, [{"text": text, "label": len(text)} for text in texts])
    options = {"tokenizer": "model", "text_field": "text", "length": 7, "fields": ["label"]}
    batch = reader_of(tmp_path, "a.jsonl", **options).read(0, 4)
    expected = fast(texts, padding="max_length", truncation=True, max_length=7)
    told = ["input_ids", "attention_mask", "labels", "label"]
    assert list(batch) == told and batch["label"].tolist() == [7, 41, 0, 13]
    assert batch["input_ids"].tolist() == expected["input_ids"]
    if kind != "marked":
        expected["attention_mask"][2][0] = 1  # of no token one is looked at
    assert batch["attention_mask"].tolist() == expected["attention_mask"]
    counted = np.where(batch["labels"] == -100, 0, 1)
    counted[2, 0] += kind != "marked"
    assert np.array_equal(counted, batch["attention_mask"])
    kept = batch["labels"] != -100
    assert np.array_equal(batch["labels"][kept], batch["input_ids"][kept])


@pytest.mark.parametrize("kind", ["words", "bytes", "marked"])
@pytest.mark.parametrize("end", [False, True])
def test_only_tokens_of_the_completion_are_targets(tmp_path, kind, end):
    fast = save_tokenizer(tmp_path / "model", kind)
    pairs = [("the cat ", "sat on"), ("a mät and", " dogs ran"), ("the ca", "t sat")]
    write_lines(tmp_path, [{"q": prompt, "a": more} for prompt, more in pairs])
    options = {"prompt_field": "q", "completion_field": "a", "end_token": end, "length": 40}
    reader = reader_of(tmp_path, "a.jsonl", tokenizer="model", **options)
    batch = reader.read(0, 3)
    for row, (prompt, more) in enumerate(pairs):
        encoded = fast(prompt + more, return_offsets_mapping=True)
        ids = encoded["input_ids"] + ([fast.eos_token_id] if end and kind != "marked" else [])
        spans = encoded["offset_mapping"]
        given = next(place for place, (_, stop) in enumerate(spans) if stop > len(prompt))
        targets = [-100] * given + ids[given:]
        assert batch["input_ids"][row, : len(ids)].tolist() == ids
        assert batch["labels"][row].tolist() == targets + [-100] * (40 - len(ids))
    assert reader.preview(0) == "the cat | sat on"


def test_a_prompt_that_leaves_no_room_is_refused(tmp_path):
    save_tokenizer(tmp_path / "model")
    write_lines(tmp_path, [{"q": "the", "a": "cat"}, {"q": "the cat sat on ", "a": "a mat"}])
    options = {"prompt_field": "q", "completion_field": "a", "tokenizer": "model"}
    assert reader_of(tmp_path, "a.jsonl", length=5, **options).read(0, 2)["labels"][1, 4] > 0
    with pytest.raises(InputError, match=r"row 1: after a prompt of 4 tokens .* length = 4; raise"):
        reader_of(tmp_path, "a.jsonl", length=4, **options).read(0, 2)
    save_tokenizer(tmp_path / "marked", "marked")  # what marks the end is no completion
    with pytest.raises(InputError, match=r"row 1: after a prompt of 4 tokens .* length = 5; raise"):
        reader_of(tmp_path, "a.jsonl", length=5, **options | {"tokenizer": "marked"}).read(0, 2)


def test_a_field_called_labels_takes_the_place_of_tokens_as_targets(tmp_path):
    save_tokenizer(tmp_path / "model")
    write_lines(tmp_path, [{"text": " ".join(WORDS), "labels": 3}])
    options = {"tokenizer": "model", "text_field": "text", "length": 4}
    assert reader_of(tmp_path, "a.jsonl", **options).read(0, 1)["labels"].shape == (1, 4)
    options |= {"fields": ["labels"]}
    assert reader_of(tmp_path, "a.jsonl", **options).read(0, 1)["labels"].tolist() == [3]


def test_the_identity_follows_the_tokenizer_and_how_it_is_used(tmp_path):
    save_tokenizer(tmp_path / "model")
    (tmp_path / "a.txt").write_text("the cat\nsat")
    options = {"tokenizer": "model", "length": 5}
    before = reader_of(tmp_path, "a.txt", **options)
    identity, signature = before.identity(), before.stat_signature()
    for other in ({"length": 6}, {"end_token": True}):
        assert reader_of(tmp_path, "a.txt", **(options | other)).identity() != identity
    (tmp_path / "model").rename(tmp_path / "moved")
    moved = reader_of(tmp_path, "a.txt", tokenizer="moved", length=5)
    assert moved.identity() == identity and moved.stat_signature() != signature
    file = tmp_path / "moved" / "tokenizer.json"
    file.write_text(file.read_text().replace('"cat"', '"cow"'))
    assert reader_of(tmp_path, "a.txt", tokenizer="moved", length=5).identity() != identity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_field": "t"}, "text_field needs tokenizer = FOLDER"),
        ({"tokenizer": "m"}, "tokenizer needs text_field, or prompt_field and completion_field"),
        (
            {"tokenizer": "m", "prompt_field": "t"},
            "tokenizer needs text_field, or prompt_field and",
        ),
        ({"tokenizer": "m", "text_field": "t"}, "tokenizer needs length = N"),
        ({"tokenizer": "m", "text_field": "t", "length": 4}, r"tokenizer\.json does not exist"),
        ({"tokenizer": "bad", "text_field": "t", "length": 4}, "is no tokenizer that can be read"),
        ({"tokenizer": "model", "text_field": "n", "length": 4}, "column 'n' is int64, no text"),
        ({"tokenizer": "model", "text_field": "tt", "length": 4}, "did you mean 't'"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_refused(tmp_path, options, message):
    save_tokenizer(tmp_path / "model")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "tokenizer.json").write_text("{}")
    write_lines(tmp_path, [{"t": "x", "n": 1}])
    with pytest.raises(InputError, match=message):
        reader_of(tmp_path, "a.jsonl", **options).read(0, 1)


def test_an_end_that_no_tokenizer_names_is_refused(tmp_path):
    save_tokenizer(tmp_path / "model")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / "model" / name).unlink()
    (tmp_path / "a.txt").write_text("the cat")
    with pytest.raises(InputError, match="names no eos_token"):
        reader_of(tmp_path, "a.txt", tokenizer="model", length=4, end_token=True).read(0, 1)
