"""Write ranked examples of every query to CSV, JSON lines or Parquet, each saying what its numbers are."""

import csv
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from streamfluence.errors import InputError
from streamfluence.new_file import new_file
from streamfluence.run.finished import Finished, finished, parse_query
from streamfluence.run.listed import known, lists
from streamfluence.run.opened import OpenRun
from streamfluence.run.record import record
from streamfluence.scoring.named import named

FIELDS = (
    "query",
    "query_id",
    "query_group",
    "side",
    "rank",
    "row",
    "id",
    "group",
    "score",
    "loss",
    "self_influence",
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # with these a spreadsheet's formula begins

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline


def export(
    run_path: str, output: str, format: str | None = None, name: str | None = None
) -> dict[str, Any]:
    """Write the top_k result of one score; return where and how many lines.

    Args:
        output: File to write. It must not exist.
        format: ``csv``, ``jsonl`` or ``parquet``; by default the file's suffix.
        name: Of the scores, when the run has several.

    The record (meaning, sign, unit, method, damping, coverage) is the comment lines ahead of a CSV,
    the first line of JSON lines, and the schema metadata of Parquet. In a CSV a text that a
    spreadsheet would run as a formula begins with an apostrophe, and a control character is written
    as Python's escape for it; the other formats keep both as they are.

    Raises:
        IncompleteError: If the scores are not finished, or something they rest on is missing.
        DamageError: If something they rest on is not what it was.
        InputError: If the file exists, or the scores have no top_k.
    """
    run, path = OpenRun.open(run_path), Path(output)
    kind = format or path.suffix.lstrip(".")
    if kind not in _WRITERS:
        raise InputError(f"format {kind!r} is none of {', '.join(_WRITERS)}; give --format")
    if kind == "parquet":
        _pyarrow()  # refused before anything is written
    label, _ = parse_query(run, "0", name)
    scores = finished(run, label)
    header, lines = record(run, label, scores), list(_lines(run, scores))
    with new_file(path) as temporary:
        _WRITERS[kind](temporary, header, lines)
    return {"output": str(path), "format": kind, "lines": len(lines), "record": header}


def _lines(run: OpenRun, scores: Finished) -> Iterator[dict[str, Any]]:
    """Yield one dictionary a listed example."""
    examples, queries = (named(run, scores.receipt, role) for role in ("train", "queries"))
    for side, arrays in lists(run, scores).items():
        for query, rank in zip(*np.nonzero(arrays["rows"] >= 0), strict=True):
            row = int(arrays["rows"][query, rank])
            yield {
                "query": int(query),
                "query_id": queries.of(int(query), "id"),
                "query_group": queries.of(int(query), "group"),
                "side": side,
                "rank": int(rank) + 1,
                "row": row,
                "id": examples.of(row, "id"),
                "group": examples.of(row, "group"),
                "score": float(arrays["scores"][query, rank]),
                "loss": known(arrays["loss"][query, rank]),
                "self_influence": known(arrays["self_influence"][query, rank]),
            }


def _write_csv(path: Path, header: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
        for key, value in header.items():
            stream.write(f"# {key}: {_inert_json(value)}\n")
        writer = csv.DictWriter(stream, FIELDS)
        writer.writeheader()
        for line in lines:
            writer.writerow({field: _inert(value) for field, value in line.items()})


def _inert(value: Any) -> Any:
    """Return a cell that no spreadsheet runs and no terminal obeys; numbers are written as they are."""
    if isinstance(value, str):
        seen = unicodedata.normalize("NFKC", value).lstrip(" \0'")
        value = _CONTROLS.sub(lambda m: m[0].encode("unicode_escape").decode(), value)
        return f"'{value}" if seen.startswith(_FORMULA) else value
    return value


def _inert_json(value: Any) -> str:
    """Return JSON in which no comma makes a spreadsheet see a cell that is a formula.

    Between values JSON has a space after a comma; without one it lies inside a text.
    """
    escaped = r"[,;]([=+@-])"
    text = re.sub(escaped, lambda m: f"{m[0][0]}\\u{ord(m[1]):04x}", json.dumps(value))
    return text.replace("\x7f", "\\u007f")


def _write_jsonl(path: Path, header: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps({"record": header}) + "\n")
        stream.writelines(json.dumps(line) + "\n" for line in lines)


def _write_parquet(path: Path, header: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    pa, parquet = _pyarrow()
    columns = {field: [_utf8(line[field]) for line in lines] for field in FIELDS}
    table = pa.table(columns).replace_schema_metadata({"streamfluence": json.dumps(header)})
    parquet.write_table(table, path)


def _utf8(value: Any) -> Any:
    """Return a text as UTF-8 can hold it; a lone half of a character is written out."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise InputError("Parquet needs pyarrow: pip install 'streamfluence[parquet]'") from error
    return pa, parquet


_WRITERS = {"csv": _write_csv, "jsonl": _write_jsonl, "parquet": _write_parquet}
