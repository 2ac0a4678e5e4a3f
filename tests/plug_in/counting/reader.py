"""Examples that are lines of numbers, the last of which is a class."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamfluence.data.base import Reader
from streamfluence.errors import InputError


class Lines(Reader):
    """Lines of a text file: ``x`` float32, shape ``(example, number)``, and ``y`` int64.

    Args:
        path: The file.
        between: What stands between two numbers.
    """

    def __init__(self, root: Path, *, path: str, between: str = ",") -> None:
        self._path = root / path
        table = np.loadtxt(self._path, delimiter=between, ndmin=2)
        self._x, self._y = table[:, :-1].astype(np.float32), table[:, -1].astype(np.int64)

    def count(self) -> int:
        return len(self._y)

    def read(self, start: int, stop: int) -> Any:
        if not 0 <= start <= stop <= self.count():
            raise InputError(f"rows {start} to {stop} of a file of {self.count()} examples")
        return {"x": self._x[start:stop].copy(), "y": self._y[start:stop].copy()}

    def take(self, rows: Sequence[int] | np.ndarray) -> Any:
        for row in rows:
            if not 0 <= row < self.count():
                raise InputError(f"row {row} of a file of {self.count()} examples")
        return {"x": self._x[list(rows)], "y": self._y[list(rows)]}

    def identity(self) -> Mapping:
        return {"sha256": hashlib.sha256(self._path.read_bytes()).hexdigest()}

    def stat_signature(self) -> Any:
        found = self._path.stat()
        return [found.st_size, found.st_mtime_ns]

    def preview(self, row: int) -> str:
        return f"{self._x[row].round(2).tolist()} is of class {self._y[row]}"
