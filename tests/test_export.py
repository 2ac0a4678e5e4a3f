"""An export is written whole or not at all, over nothing, and starts no program."""

import csv
import io
import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from small_job import JOB, write_job

from streamfluence import new_file as _new_file
from streamfluence.errors import InputError, StorageError
from streamfluence.new_file import new_file
from streamfluence.stages import export
from streamfluence.stages.run import run

HOSTILE = [
    "=1+1",
    "+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    " =1",
    "\uff1d1",
    "plain",
    "with,comma",
    '"=1',
    "7",
]
GROUPED = 'id_field = "key"\ngroup_field = "kind"\ngroup_names = "names.json"\n'


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    job = JOB.replace('path = "train-*.npz"\n', f'path = "train-*.npz"\n{GROUPED}')
    write_job(folder, n=48, job=job.replace('path = "test.npz"\n', f'path = "test.npz"\n{GROUPED}'))
    (folder / "names.json").write_text(json.dumps(["=cmd()", "a, b", "plain"]))
    for shard in sorted(folder.glob("*.npz")):
        arrays = loaded(shard)
        count = len(arrays["y"])
        keys = np.array(
            [f"{HOSTILE[i % len(HOSTILE)]}#{shard.stem}{i}" for i in range(count)], "U40"
        )
        np.savez(shard, key=keys, kind=np.arange(count) % 3, **arrays)
    run(folder / "job.toml", str(folder / "run"))
    return folder / "run"


def loaded(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


def lines(path: Path) -> list[dict[str, str]]:
    text = "".join(line for line in text_of(path) if not line.startswith("#"))
    return list(csv.DictReader(io.StringIO(text)))


def text_of(path: Path) -> list[str]:
    return path.read_bytes().decode().splitlines(keepends=True)


def test_ids_and_groups_are_those_of_the_data(finished, tmp_path):
    export.export(str(finished), str(tmp_path / "out.jsonl"))
    keys, kinds = [], []
    for shard in sorted(finished.parent.glob("train-*.npz")):
        arrays = loaded(shard)
        keys += arrays["key"].tolist()
        kinds += arrays["kind"].tolist()
    test = loaded(finished.parent / "test.npz")
    names = json.loads((finished.parent / "names.json").read_text())
    listed = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()[1:]]
    assert len(listed) == 2 * 7 * 48
    for line in listed:
        assert line["id"] == keys[line["row"]]
        assert line["group"] == names[kinds[line["row"]]]
        assert line["query_id"] == test["key"][line["query"]].item()
        assert line["query_group"] == names[int(test["kind"][line["query"]])]


def test_no_cell_of_a_csv_is_a_formula(finished, tmp_path):
    export.export(str(finished), str(tmp_path / "out.csv"))
    export.export(str(finished), str(tmp_path / "out.jsonl"))
    plain = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()[1:]]
    for line, wanted in zip(lines(tmp_path / "out.csv"), plain, strict=True):
        for field in ("id", "group", "query_id", "query_group"):
            assert line[field].lstrip()[0] not in "=+-@\t\uff1d"
            assert line[field].removeprefix("'") == wanted[field].removeprefix("'")
        assert float(line["score"]) == wanted["score"]  # a negative number is a number
    for row in csv.reader(text_of(tmp_path / "out.csv")):
        for cell in row:
            if cell.lstrip(" ")[:1] in "=+-@":
                float(cell or 0)


def test_no_cell_of_a_csv_moves_a_terminal(tmp_path):
    ids = ["\x1b[2J", "\x9b31m", "a\x7f\b", "a\rb", "\x1b=1", "a\tb\nc", "mañana\u200d"]
    lines = [dict.fromkeys(export.FIELDS, each) for each in ids]
    export._write_csv(tmp_path / "out.csv", {"left out": ids}, lines)
    text = (tmp_path / "out.csv").read_bytes().decode()
    assert not {c for c in text if unicodedata.category(c) == "Cc"} - set("\r\n\t")
    assert "\r" not in text.replace("\r\n", "")
    cells = [row[0] for row in csv.reader(io.StringIO(text, newline=""))][-len(ids) :]
    wanted = ["\\x1b[2J", "\\x9b31m", "a\\x7f\\x08", "a\\rb", "\\x1b=1", "a\tb\nc", "mañana\u200d"]
    assert cells == wanted


@pytest.mark.parametrize("name", ["a" * 252 + ".csv", "é" * 126 + ".csv", "a" * 5000 + "/x.csv"])
def test_a_name_that_is_too_long_is_the_users_to_change(finished, tmp_path, name):
    with pytest.raises(InputError, match=r"too long|does not exist"):
        export.export(str(finished), str(tmp_path / name))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a" * 251 + ".csv", "é" * 125 + ".csv", "水" * 80 + ".csv"])
def test_a_name_of_any_length_that_there_may_be_is_written(finished, tmp_path, name):
    export.export(str(finished), str(tmp_path / name))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_json_in_a_comment_line_holds_no_formula_and_stays_the_same_json():
    value = {"left_out": ["a,=HYPERLINK(1)", "b;@x", ",-1"], "number": -1.5, "list": [1, -2]}
    text = export._inert_json(value)
    assert json.loads(text) == value and ",=" not in text and ";@" not in text and ",-1" not in text


def test_a_file_of_the_temporary_name_stays(finished, tmp_path):
    mine = tmp_path / "out.csv.partial"
    mine.write_text("mine")
    export.export(str(finished), str(tmp_path / "out.csv"))
    assert mine.read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.csv", "out.csv.partial"]


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_what_is_there_is_never_written_over(finished, tmp_path, kind):
    target, other = tmp_path / "out.csv", tmp_path / "other"
    if kind == "file":
        target.write_text("mine")
    else:
        target.symlink_to(other)
        if kind == "link":
            other.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        export.export(str(finished), str(target))
    assert not other.exists() or other.read_text() == "mine"


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_not_written_over(tmp_path, links, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "out"
    with pytest.raises(InputError, match="exists already"), new_file(path) as temporary:
        temporary.write_text("ours")
        path.write_text("theirs")
    assert path.read_text() == "theirs" and [p.name for p in tmp_path.iterdir()] == ["out"]


def no_links(source, target):
    raise OSError(95, "Operation not supported")


def test_without_hard_links_the_file_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", no_links)
    with new_file(tmp_path / "out") as temporary:
        temporary.write_text("ours")
    assert (tmp_path / "out").read_text() == "ours"


def test_what_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    with pytest.raises(StorageError, match="No space left"), new_file(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "out"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_content_is_flushed_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    link, flush = os.link, _new_file._flush
    monkeypatch.setattr(os, "link", lambda a, b: (done.append("link"), link(a, b)))
    monkeypatch.setattr(
        _new_file,
        "_flush",
        lambda p, f: (done.append("folder" if p.is_dir() else "file"), flush(p, f)),
    )
    with new_file(tmp_path / "out") as temporary:
        temporary.write_text("ours")
    assert done == ["file", "link", "folder"]
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now
