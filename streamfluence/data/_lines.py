"""Lines of a text file in any order: where every 64th begins is found by reading the file once.

A line ends with a line feed; a carriage return before it is no part of the line.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from streamfluence.data._files import readable
from streamfluence.errors import InputError

_STEP = 64
_BLOCK = 1 << 20
_LINE_FEED = 10
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Lines:
    """The lines of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def count(self) -> int:
        """How many lines there are; after the last line feed there is none unless it has bytes."""
        return self._index[0]

    def read(self, rows: np.ndarray) -> Iterator[bytes]:
        """Yield these lines, whose numbers ascend, without their ends."""
        with readable(self.path), open(self.path, "rb", buffering=_BLOCK) as file:
            at = 0
            for row in rows.tolist():
                if row // _STEP * _STEP > at:
                    at = row // _STEP * _STEP
                    file.seek(self._index[1][row // _STEP])
                while at < row:
                    file.readline()
                    at += 1
                line, at = file.readline(), at + 1
                yield _bare(line.removeprefix(_BYTE_ORDER_MARK) if row == 0 else line)

    def text(self, line: bytes, row: int) -> str:
        """Return a line as text; InputError names it if it is no UTF-8."""
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"line {row + 1:,} of {self.path} is no UTF-8 text ({error}); convert the file to UTF-8"
            ) from error

    @cached_property
    def _index(self) -> tuple[int, np.ndarray]:
        """The number of lines, and where line 0, 64, 128 ... begin."""
        starts, seen, size, last = [np.zeros(1, np.int64)], 0, 0, _LINE_FEED
        with readable(self.path), open(self.path, "rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                ends = np.flatnonzero(np.frombuffer(block, np.uint8) == _LINE_FEED)
                begun = seen + 1 + np.arange(len(ends))
                starts.append(ends[begun % _STEP == 0] + size + 1)
                seen, size, last = seen + len(ends), size + len(block), block[-1]
        return seen + (last != _LINE_FEED), np.concatenate(starts)


def _bare(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r")
