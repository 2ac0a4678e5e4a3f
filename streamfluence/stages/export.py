"""Write ranked examples of every query to CSV, JSON lines or Parquet, each saying what its numbers are."""

import csv
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from streamfluence.errors import InputError, StorageError
from streamfluence.layout import collect_stage
from streamfluence.stages._record import record
from streamfluence.stages._sets import partition_count, set_facts
from streamfluence.stages.top import finished, parse_query
from streamfluence.store import RunStore, array_names
from streamfluence.store.text import decode_ids

FIELDS = ("query", "query_id", "side", "rank", "row", "id", "score", "loss", "self_influence")


def export(
    run_path: str, output: str, format: str | None = None, name: str | None = None
) -> dict[str, Any]:
    """Write the top_k result of one score; return where and how many lines.

    Args:
        output: File to write. It must not exist.
        format: ``csv``, ``jsonl`` or ``parquet``; by default the file's suffix.
        name: Of the scores, when the run has several.

    The record (meaning, sign, unit, method, damping, coverage) is the comment lines ahead of a CSV,
    the first line of JSON lines, and the schema metadata of Parquet.
    """
    store, path = RunStore.open(run_path), Path(output)
    kind = format or path.suffix.lstrip(".")
    if kind not in _WRITERS:
        raise InputError(f"format {kind!r} is none of {', '.join(_WRITERS)}; give --format")
    if path.exists():
        raise InputError(f"{path} exists already; remove it or name another file")
    if not path.absolute().parent.is_dir():
        raise InputError(f"the folder of {path} does not exist; make it, or name another file")
    label, _ = parse_query(store, "0", name)
    header = record(store, label) if finished(store, label) else {}
    lines = list(_lines(store, label))
    partial = path.with_name(path.name + ".partial")
    try:
        _WRITERS[kind](partial, header, lines)
        partial.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return {"output": str(path), "format": kind, "lines": len(lines), "record": header}


def _lines(store: RunStore, label: str) -> Iterator[dict[str, Any]]:
    """Yield one dictionary a listed example."""
    receipt = finished(store, label)
    spec = store.read_document(f"scores/{label}/score.json")
    if "top_k.positive_rows" not in array_names(receipt):
        raise InputError(f"scores {label!r} have no top_k to export; add it to score.readouts")
    query_ids = _ids(store, spec["queries"], np.arange(set_facts(store, spec["queries"])["count"]))
    for side in ("positive", "negative"):
        arrays = {
            key: store.read(receipt, f"top_k.{side}_{key}")
            for key in ("rows", "scores", "loss", "self_influence")
        }
        rows = arrays["rows"]
        listed = np.unique(rows[rows >= 0])
        ids = dict(zip(listed, _ids(store, "train", listed), strict=True))
        for query, rank in zip(*np.nonzero(rows >= 0), strict=True):
            row = rows[query, rank]
            yield {
                "query": int(query),
                "query_id": query_ids[query].item(),
                "side": "helps" if side == "positive" else "hurts",
                "rank": int(rank) + 1,
                "row": int(row),
                "id": ids[row].item(),
                "score": float(arrays["scores"][query, rank]),
                "loss": float(arrays["loss"][query, rank]),
                "self_influence": float(arrays["self_influence"][query, rank]),
            }


def _ids(store: RunStore, example_set: str, rows: np.ndarray) -> np.ndarray:
    """Return the stored ids of sorted rows, reading each partition once."""
    size = set_facts(store, example_set)["partition_examples"]
    pieces = []
    for partition in range(partition_count(store, example_set)):
        low, high = np.searchsorted(rows, [partition * size, (partition + 1) * size])
        receipt = store.receipt(collect_stage(example_set, 0), partition) if low < high else None
        if receipt is not None:
            stored = decode_ids(store.read(receipt, "example_id"))
            pieces.append(stored[rows[low:high] - partition * size])
        elif low < high:
            pieces.append(np.full(high - low, -1, np.int64))
    return np.concatenate(pieces) if pieces else np.empty(0, np.int64)


def _write_csv(path: Path, header: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        for key, value in header.items():
            stream.write(f"# {key}: {json.dumps(value)}\n")
        writer = csv.DictWriter(stream, FIELDS)
        writer.writeheader()
        writer.writerows(lines)


def _write_jsonl(path: Path, header: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps({"record": header}) + "\n")
        stream.writelines(json.dumps(line) + "\n" for line in lines)


def _write_parquet(path: Path, header: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise InputError("Parquet needs pyarrow: pip install 'streamfluence[parquet]'") from error
    columns = {field: [line[field] for line in lines] for field in FIELDS}
    table = pa.table(columns).replace_schema_metadata({"streamfluence": json.dumps(header)})
    parquet.write_table(table, path)


_WRITERS = {"csv": _write_csv, "jsonl": _write_jsonl, "parquet": _write_parquet}
