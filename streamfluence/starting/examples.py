"""Data that somebody has: which reader they need, how long they are, and a few of them as queries."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from streamfluence.data import open_reader
from streamfluence.data._tabular import Tabular
from streamfluence.errors import InputError
from streamfluence.given import read_json

_READERS = {".parquet": "parquet", ".jsonl": "jsonl", ".txt": "text"}
_SPLITS = "dataset_dict.json"
_TRAIN, _ASKED = ("train",), ("test", "validation", "eval")
_LOOKED_AT = 500
_AT_ONCE = 50
_QUERIES = 10
_STEP = 8  # of lengths
_PATHS = ("path", "tokenizer")


@dataclass(frozen=True)
class Columns:
    """Columns that are given to a model: those of one text, or of a prompt and its completion.

    Attributes:
        label: Of the class of an example.
    """

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    label: str | None = None

    @property
    def fields(self) -> dict[str, str]:
        """The options of a reader that name what is tokenised."""
        found = {
            "text_field": self.text,
            "prompt_field": self.prompt,
            "completion_field": self.completion,
        }
        return {key: name for key, name in found.items() if name is not None}

    @property
    def names(self) -> list[str]:
        """All columns that are named."""
        return [*self.fields.values(), *([self.label] if self.label else [])]


def table_of(data: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the reader's tables of training examples, and of those that queries are taken from.

    Args:
        data: A file, or a folder of files of one kind, or one that ``datasets`` saved.
    """
    if (data / _SPLITS).is_file():
        splits = read_json(data / _SPLITS).get("splits", [])
        table = {"reader": "huggingface", "path": str(data.absolute())}
        train = next((name for name in _TRAIN if name in splits), None) or splits[0]
        asked = next((name for name in _ASKED if name in splits), train)
        return {**table, "split": train}, {**table, "split": asked}
    if (data / "state.json").is_file():
        table = {"reader": "huggingface", "path": str(data.absolute())}
    elif data.is_dir():
        table = _of_folder(data)
    elif data.suffix in _READERS and data.is_file():
        table = {"reader": _READERS[data.suffix], "path": str(data.absolute())}
    else:
        raise InputError(
            f"{data} is no data that can be read; name a file of {', '.join(_READERS)}, a folder of "
            f"those, or one written by save_to_disk"
        )
    return table, table


def check_columns(table: Mapping[str, Any], names: list[str]) -> None:
    """Raise InputError, with the columns there are, unless some are named and all of them are there."""
    there = _reader(table).columns()
    unknown = [name for name in names if name not in there and "." not in name]
    if unknown:
        near = get_close_matches(unknown[0], there, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(
            f"the data have no column {unknown[0]!r}; {hint}there are: {', '.join(there)}"
        )
    if not names:
        raise InputError(
            f"say which column is the text: --text-column, or --prompt-column and --completion-column; "
            f"there are: {', '.join(there)}"
        )


def longest(table: Mapping[str, Any], most: int) -> tuple[int, int]:
    """Return how long the longest of some examples is, in tokens, and how many were looked at.

    Args:
        table: With a tokenizer and its columns.
        most: Tokens after which all are cut.
    """
    reader = _reader({**table, "length": most})
    rows = _spread(reader.count(), _LOOKED_AT)
    blocks = [rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE)]
    lengths = [int(reader.take(block)["attention_mask"].sum(1).max()) for block in blocks]
    found = max(lengths, default=1)
    return min(-(-found // _STEP) * _STEP, most), len(rows)


def queries(table: Mapping[str, Any], names: list[str], length: int | None) -> str:
    """Return some examples as JSON lines, to be asked about or replaced; lists of numbers padded."""
    fields = {} if table["reader"] == "text" else {"fields": names, "length": length}
    reader = _reader({**table, **fields})
    rows = _spread(reader.count(), _QUERIES)
    batch = reader.take(rows)
    return "".join(
        json.dumps({name: _plain(batch[name][row]) for name in batch}, ensure_ascii=False) + "\n"
        for row in range(len(rows))
    )


def placed(table: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Return a table whose paths are as a job in ``directory`` names them."""
    paths = {key: relative(Path(table[key]), directory) for key in _PATHS if key in table}
    return {**table, **paths}


def relative(path: Path, directory: Path) -> str:
    """Return a path as a job in ``directory`` names it."""
    return os.path.relpath(path.absolute(), directory.absolute())


def _of_folder(data: Path) -> dict[str, Any]:
    kinds = {end for end in _READERS if any(data.glob(f"*{end}"))}
    if len(kinds) != 1:
        raise InputError(
            f"{data} holds files of {', '.join(sorted(kinds)) or 'no known kind'}; name one file, or a "
            f"folder of one of {', '.join(_READERS)}"
        )
    (end,) = kinds
    return {"reader": _READERS[end], "path": f"{data.absolute()}/*{end}"}


def _reader(table: Mapping[str, Any]) -> Tabular:
    reader = open_reader(dict(table), Path())
    assert isinstance(reader, Tabular)
    if not reader.count():
        raise InputError(f"{table['path']} holds no example")
    return reader


def _spread(count: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
