"""Compare a whole run with its receipts and list what differs, without stopping at the first.

Structure (receipts, objects, lengths, row ranges) is always compared; bytes for all
objects or for a sample that depends only on the seed and the object's path.
"""

import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamfluence.errors import DamageError
from streamfluence.layout import receipt_path
from streamfluence.store.receipts import Receipt, StoredObject, read_receipts
from streamfluence.store.storage import Storage

_PIECE_BYTES = 4 << 20


@dataclass(frozen=True)
class Problem:
    """One thing that is not as its receipt says.

    Attributes:
        object: Path in the run of what is damaged.
        what: What is wrong with it.
    """

    stage: str
    partition: int
    object: str
    what: str


def verify_stage(
    storage: Storage,
    stage: str,
    fingerprint: str,
    fraction: float,
    seed: int,
    checked: Callable[[str, int], None],
) -> Iterator[Problem]:
    """Yield the problems of one stage.

    Args:
        fraction: Share of objects whose bytes are read, 0 to 1.
        checked: Called with the path and length of every object whose bytes were read.
    """
    good = []
    for partition, receipt in read_receipts(storage, stage, fingerprint):
        if isinstance(receipt, DamageError):
            yield Problem(stage, partition, receipt_path(stage, partition), str(receipt))
            continue
        good.append(receipt)
        yield from _verify_partition(storage, receipt, fraction, seed, checked)
    if stage.startswith("collect/"):
        yield from _overlaps(good)


def _verify_partition(
    storage: Storage,
    receipt: Receipt,
    fraction: float,
    seed: int,
    checked: Callable[[str, int], None],
) -> Iterator[Problem]:
    found = {
        entry.path.removeprefix(f"{receipt.path}/"): entry.size
        for entry in storage.entries(receipt.path)
    }
    for name, promised in receipt.objects.items():
        path = f"{receipt.path}/{name}"
        what = _structure_problem(found.get(name), promised)
        if what is None and random.Random(f"{seed} {path}").random() < fraction:
            what = _content_problem(storage, path, promised)
            checked(path, promised.length)
        if what is not None:
            yield Problem(receipt.stage, receipt.partition, path, what)


def _structure_problem(size: int | None, promised: StoredObject) -> str | None:
    if size is None:
        return "is missing"
    if size != promised.length:
        return f"has {size:,} bytes, its receipt says {promised.length:,}"
    return None


def _content_problem(storage: Storage, path: str, promised: StoredObject) -> str | None:
    try:
        found = _checksum(storage, path, promised.length)
    except FileNotFoundError:
        return "is missing"
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
