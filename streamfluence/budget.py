"""What a job costs in bytes, files and time: pure arithmetic, checked before anything is queued."""

import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from streamfluence.columns import BYTES_BESIDE
from streamfluence.errors import BudgetError, InputError


@dataclass(frozen=True)
class Stored:
    """Files, and the bytes in them."""

    files: int = 0
    nbytes: int = 0

    def __add__(self, other: "Stored") -> "Stored":
        return Stored(self.files + other.files, self.nbytes + other.nbytes)

    def __mul__(self, times: int) -> "Stored":
        return Stored(self.files * times, self.nbytes * times)


@dataclass(frozen=True)
class Cost:
    """What a job needs.

    Attributes:
        disk_bytes, files: Under the run directory, all checkpoints.
        peak_bytes: Resident memory of one worker.
        passes: How often the training data is read from end to end.
        seconds: With the workers the plan assumed.
    """

    disk_bytes: int
    files: int
    peak_bytes: int
    passes: int
    seconds: float

    def table(self) -> dict[str, Any]:
        """Return the cost as JSON-able numbers."""
        return asdict(self)


def disk_bytes(count: int, row_bytes: int, checkpoints: int) -> int:
    """Return the bytes that ``count`` rows and what is stored beside them take at all checkpoints."""
    return count * (row_bytes + BYTES_BESIDE) * checkpoints


def rows_stored(count: int, partitions: int, row_bytes: int, partition: Stored) -> Stored:
    """Return what the rows of one example set take at one checkpoint.

    Args:
        partition: What a partition takes besides its rows: metadata, checksums, its receipt.
    """
    return partition * partitions + Stored(0, disk_bytes(count, row_bytes, 1))


def stored_below(folder: Path) -> Stored:
    """Return what lies in a folder and all below it."""
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    return Stored(len(sizes), sum(sizes))


def refuse_what_does_not_fit(cost: Cost, where: str, memory: int | None) -> None:
    """Raise BudgetError when the cost exceeds the free disk space or the memory one worker may use."""
    if memory is not None and cost.peak_bytes > memory:
        needed, allowed = _told_apart(cost.peak_bytes, memory)
        raise BudgetError(
            f"one worker needs {needed}, but --memory allows {allowed}; raise --memory, or lower "
            f"compute.batch_size or projection.width"
        )
    free = free_bytes(where)
    if free is not None and cost.disk_bytes > free:
        needed, there = _told_apart(cost.disk_bytes, free)
        raise BudgetError(
            f"the run needs {needed}, but {where} has {there} free; lower rows.bytes, or put the run "
            f"in another place"
        )


def size(n_bytes: float) -> str:
    """Return bytes in the largest binary unit that leaves at least 1, e.g. ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n_bytes) < 1024:
            return f"{n_bytes:.4g} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.4g} TiB"


def _told_apart(needed: int, there: int) -> tuple[str, str]:
    """Return two sizes in words that differ, as the sizes do."""
    if size(needed) != size(there):
        return size(needed), size(there)
    return f"{needed:,} bytes", f"{there:,} bytes"


def free_bytes(where: str) -> int | None:
    """Return the free bytes where a run will lie; None for an object store."""
    if "://" in where:
        return None
    folder = Path(where).resolve()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def parse_size(text: str) -> int:
    """Return the bytes of ``4GiB``, ``512 MB``, ``1.5g`` or ``1000``.

    K, M, G and T are binary unless they end in a plain ``B``, as in ``kB``.

    Raises:
        InputError: If it is no size.
    """
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([kmgt]?)(i?b?)\s*", text.lower())
    if not match or (match[3] == "i" or (match[3] == "ib" and not match[2])):
        raise InputError(f"memory {text[:40]!r} is no size in bytes; give one such as 4GiB")
    base = 1000 if match[2] and match[3] == "b" else 1024
    return int(float(match[1]) * base ** " kmgt".index(match[2] or " "))
