"""Compare a whole run with its receipts and list what differs, without stopping at the first.

Structure (receipts, objects, lengths, row ranges) is always compared; bytes for all
objects, or for a share of them that is another one at every turn: so many turns in a
row as the share goes into one read every object once, however the run grows meanwhile.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamfluence.errors import DamageError
from streamfluence.layout import RECEIPTS, holds_rows, receipt_path
from streamfluence.store.receipts import Receipt, StoredObject, read_receipts, stages
from streamfluence.store.storage import Storage

_PIECE_BYTES = 4 << 20


@dataclass(frozen=True)
class Problem:
    """One thing that is not as its receipt or its own checksum says.

    Attributes:
        stage, partition: Empty and -1 for what belongs to no partition.
        object: Path in the run of what is damaged.
        what: What is wrong with it.
    """

    stage: str
    partition: int
    object: str
    what: str


@dataclass(frozen=True)
class Inspection:
    """Which share of the stored bytes is read, and who is told of it.

    Attributes:
        fraction: Share of objects whose bytes are read, 0 to 1; one over a whole number below.
        turn: Which share of that size.
        there: Called with path and length of every object that is looked at.
        read: Called with path and length of every object whose bytes were read.
    """

    fraction: float = 1.0
    turn: int = 0
    there: Callable[[str, int], None] = lambda path, length: None
    read: Callable[[str, int], None] = lambda path, length: None

    @property
    def turns(self) -> int:
        """After how many turns everything was read."""
        return max(1, int(1 / self.fraction)) if self.fraction > 0 else 0

    def chooses(self, path: str) -> bool:
        """Return whether it is this object's turn."""
        return bool(self.turns) and zlib.crc32(path.encode()) % self.turns == self.turn % self.turns


def verify_stages(
    storage: Storage, chosen: Iterable[str] | None, fingerprint: str, inspection: Inspection
) -> Iterator[Problem]:
    """Yield the problems of some stages; None takes all."""
    try:
        for stage in stages(storage) if chosen is None else chosen:
            yield from verify_stage(storage, stage, fingerprint, inspection)
    except DamageError as error:  # not even a listing, as of a link in a folder's place
        yield Problem("", -1, RECEIPTS, str(error))


def verify_stage(
    storage: Storage, stage: str, fingerprint: str, inspection: Inspection
) -> Iterator[Problem]:
    """Yield the problems of one stage."""
    good = []
    for partition, receipt in read_receipts(storage, stage, fingerprint):
        if isinstance(receipt, DamageError):
            yield Problem(stage, partition, receipt_path(stage, partition), str(receipt))
            continue
        good.append(receipt)
        yield from _verify_partition(storage, receipt, inspection)
    if holds_rows(stage):
        yield from _overlaps(good)


def _verify_partition(
    storage: Storage, receipt: Receipt, inspection: Inspection
) -> Iterator[Problem]:
    for path, what in verify_objects(storage, receipt.path, receipt.objects, inspection):
        yield Problem(receipt.stage, receipt.partition, path, what)


def verify_objects(
    storage: Storage, folder: str, objects: Mapping[str, StoredObject], inspection: Inspection
) -> Iterator[tuple[str, str]]:
    """Yield path and what is wrong of every object below a folder that is not as promised."""
    try:
        found = {
            entry.path.removeprefix(f"{folder}/"): entry.size for entry in storage.entries(folder)
        }
    except DamageError as error:
        yield folder, str(error)
        return
    for name, promised in objects.items():
        path = f"{folder}/{name}"
        inspection.there(path, promised.length)
        what = _structure_problem(storage, path, found.get(name), promised)
        if what is None and inspection.chooses(path):
            what = _content_problem(storage, path, promised)
            inspection.read(path, promised.length)
        if what is not None:
            yield path, what


def _structure_problem(
    storage: Storage, path: str, size: int | None, promised: StoredObject
) -> str | None:
    if size is None:
        try:
            storage.open(path).close()
        except FileNotFoundError:
            return "is missing"
        except DamageError as error:  # e.g. a link in its place
            return str(error)
        return None  # it came since
    if size != promised.length:
        return f"has {size:,} bytes, its receipt says {promised.length:,}"
    return None


def _content_problem(storage: Storage, path: str, promised: StoredObject) -> str | None:
    try:
        found = _checksum(storage, path, promised.length)
    except FileNotFoundError:
        return "is missing"
    except DamageError as error:
        return str(error)
    return None if found == promised.crc32 else "differs from the checksum in its receipt"


def _checksum(storage: Storage, path: str, length: int) -> int:
    """Return the CRC-32 of an object, read in pieces."""
    reader, checksum = storage.open(path), 0
    buffer: Any = np.empty(min(_PIECE_BYTES, length), np.uint8)
    try:
        for offset in range(0, length, _PIECE_BYTES):
            got = reader.read_into(offset, buffer)
            checksum = zlib.crc32(buffer[:got], checksum)
    finally:
        reader.close()
    return checksum


def _overlaps(receipts: Iterable[Receipt]) -> Iterator[Problem]:
    """Yield partitions that claim rows another one has."""
    reached, owner = 0, -1
    for receipt in sorted(receipts, key=lambda receipt: receipt.start):
        if receipt.start < min(reached, receipt.stop):
            path = receipt_path(receipt.stage, receipt.partition)
            what = (
                f"claims rows from {receipt.start:,}, but partition {owner} reaches to {reached:,}"
            )
            yield Problem(receipt.stage, receipt.partition, path, what)
        if receipt.stop > reached:
            reached, owner = receipt.stop, receipt.partition
