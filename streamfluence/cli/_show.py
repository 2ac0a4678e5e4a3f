"""Print what a stage returned: as JSON, or as lines and columns for a person.

A stage's result is a JSON-able dict. Its keys carry the unit (``disk_bytes``,
``seconds``), a list of dicts becomes columns, a dict a section of its own.
"""

import json
import math
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from streamfluence.budget import size
from streamfluence.cli._clean import clean, put, say
from streamfluence.cli._units import duration

GAP = "  "


def show(result: Mapping[str, Any], as_json: bool) -> None:
    """Print a stage's result to stdout; quiet when whoever reads it has gone."""
    if as_json:
        # ASCII throughout: json escapes all above it and below, but lets DEL through.
        text = json.dumps(_strict(result), indent=2).replace("\x7f", "\\u007f")
    else:
        text = "\n".join(map(clean, lines(result)))
    put(text)


def warn(result: Mapping[str, Any]) -> None:
    """Say on stderr what makes a result doubtful, one line each."""
    for sentence in result.get("warnings", []):
        say(f"warning: {sentence}")


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield a result as lines for a person: plain values, then sections, then tables."""
    plain = {key: value for key, value in result.items() if not _is_nested(value)}
    width = max((len(_label(key)) for key in plain), default=0)
    for key, value in plain.items():
        yield f"{_label(key):<{width}}{GAP}{_text(key, value)}".rstrip()
    for key, value in result.items():
        if not _is_nested(value):
            continue
        if plain or len(result) > 1:
            yield ""
            yield f"{_label(key)}:"
        yield from lines(value) if isinstance(value, Mapping) else columns(value)


def columns(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield rows as aligned columns, the last one cut at the width of a terminal."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_text(key, row.get(key)) for key in keys] for row in rows]
    widths = [max(map(len, column)) for column in zip(map(_label, keys), *cells, strict=True)]
    right = [all(isinstance(row.get(key), int | float | None) for row in rows) for key in keys]
    for row in [[_label(key) for key in keys], *cells]:
        aligned = (
            f"{cell:>{width}}" if to_right else f"{cell:<{width}}"
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        yield _cut(GAP.join(aligned).rstrip())


def _is_nested(value: Any) -> bool:
    if isinstance(value, Mapping):
        return True
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _label(key: str) -> str:
    return clean(key.removesuffix("_bytes").removesuffix("_seconds").replace("_", " "))


def _text(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and _ends(key, "bytes"):
        return size(value)
    if isinstance(value, int | float) and _ends(key, "seconds"):
        return duration(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(key, item) for item in value) or "none"
    return clean(str(value))


def _ends(key: str, unit: str) -> bool:
    return key == unit or key.endswith(f"_{unit}")


def _cut(line: str) -> str:
    if not sys.stdout.isatty():
        return line
    width = shutil.get_terminal_size().columns
    return line if len(line) <= width else line[: width - 1] + "…"


def _strict(value: Any) -> Any:
    """Return NaN and infinities as None: JSON has no word for them, and readers stumble."""
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
