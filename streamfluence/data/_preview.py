"""Show an example to a person: one short line that is safe to print.

Control characters are replaced, so no data can drive a terminal.
"""

from pathlib import Path
from typing import Any

import numpy as np

from streamfluence.data._files import readable
from streamfluence.data._ids import shown
from streamfluence.errors import InputError
from streamfluence.given import read_json

LENGTH = 160
_LOOKED_AT = 4 * LENGTH  # characters of a string, which may be huge


class Text:
    """Turn token numbers into text.

    Args:
        root: Folder against which ``source`` resolves.
        source: ``"bytes"`` (tokens are UTF-8 bytes), or a .json file: a list of pieces by
            token number, or a mapping from piece to token number.
    """

    def __init__(self, root: Path, source: str) -> None:
        self._pieces = None if source == "bytes" else _pieces(root / source)

    def __call__(self, tokens: np.ndarray) -> str:
        """Return the text of ``tokens``, shape ``(position,)``; negative ones (padding) are left out."""
        kept = [int(token) for token in np.ravel(tokens) if token >= 0]
        if self._pieces is None:
            return bytes(token & 0xFF for token in kept).decode("utf-8", errors="replace")
        return "".join(self._pieces.get(token, "\N{REPLACEMENT CHARACTER}") for token in kept)


def one_line(text: str) -> str:
    """Return ``text`` on one line, at most ``LENGTH`` characters, without control characters."""
    lines = [" ".join(line.split()) for line in text.split("\n")]
    joined = " ⏎ ".join(line for line in lines if line)
    shown = "".join(each if each.isprintable() else "·" for each in joined)
    return shown if len(shown) <= LENGTH else shown[: LENGTH - 1] + "…"


def show(name: str, value: np.ndarray, text: Text | None = None) -> str:
    """Return one field of one example as text: numbers if few, else type, shape and range."""
    kind = value.dtype.kind
    if kind == "U":
        return ", ".join(shown(value).ravel().tolist())
    if kind == "S":
        return ", ".join(repr(each)[2:-1] for each in value.ravel().tolist())
    if text is not None and value.ndim == 1 and kind in "iu":
        return text(value)
    shape = "x".join(map(str, value.shape))
    if kind not in "biuf" or value.size == 0:
        return f"{name} {shape} {value.dtype}"
    if value.size <= 8:
        return f"{name} {' '.join(f'{each:.6g}' for each in value.ravel().tolist())}"
    return f"{name} {shape} in [{value.min():.4g}, {value.max():.4g}]"


def show_cell(name: str, value: Any) -> str:
    """Return one cell of a table as text: strings as they are, all else with its column's name."""
    if isinstance(value, str):
        return value[:_LOOKED_AT]
    if isinstance(value, bytes):
        return show(name, np.asarray(value[:LENGTH]))
    array = _numbers(value)
    return f"{name} {value!r}"[:_LOOKED_AT] if array is None else show(name, array)


def _numbers(value: Any) -> np.ndarray | None:
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):  # a ragged list, a number that is no int64
        return None
    return array if array.dtype.kind in "biuf" else None


def _pieces(path: Path) -> dict[int, str]:
    with readable(path):
        content = read_json(path)
    if isinstance(content, list) and all(isinstance(piece, str) for piece in content):
        return dict(enumerate(content))
    if isinstance(content, dict) and all(isinstance(token, int) for token in content.values()):
        return {token: piece for piece, token in content.items()}
    raise InputError(f"{path} must be a JSON list of pieces, or a mapping from piece to number")
