"""What killed and overtaken writers leave behind, and which of it may be deleted.

An attempt may be deleted only when its partition has a sound receipt that names
another one: an attempt without a receipt may still be at work.
"""

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from streamfluence.errors import DamageError
from streamfluence.layout import PARTS, SETS, attempt_path
from streamfluence.store.receipts import DEEPEST, read_receipt
from streamfluence.store.storage import PARTIAL, Storage

_ATTEMPT = re.compile(r"\A([0-9]{8}|[1-9][0-9]{8,17})\.([^\\]+)\Z")  # as ``attempt_path`` writes it
_TOPS = (PARTS, SETS)


@dataclass(frozen=True)
class Leftover:
    """Something no receipt names.

    Attributes:
        path: In the run.
        is_tree: Whether it is a folder.
        deletable: Whether deleting it can harm nobody.
        why: What it is.
    """

    path: str
    is_tree: bool
    deletable: bool
    why: str


def leftovers(storage: Storage, fingerprint: str, older_than_s: float) -> Iterator[Leftover]:
    """Yield all that no receipt names.

    Args:
        older_than_s: Age in seconds from which a temporary file belongs to nobody.
    """
    yield from _attempts(storage, PARTS, fingerprint)
    before = time.time() - older_than_s
    folders, files = storage.children("")
    for name in files:
        yield from _temporary(storage, name, before)
    for folder in folders:
        if folder not in _TOPS:
            yield from _temporaries(storage, folder, before)
    yield from _unpublished(storage, before)


def _attempts(
    storage: Storage, folder: str, fingerprint: str, depth: int = DEEPEST
) -> Iterator[Leftover]:
    """Yield the attempts below a folder that no receipt names; a link in an attempt's place is one."""
    stage = folder.partition("/")[2]
    by_partition: dict[int, list[_Found]] = {}
    folders, others = storage.children(folder)
    for name in [*folders, *others]:
        match, is_tree = _ATTEMPT.match(name), name in folders
        if match is not None:
            by_partition.setdefault(int(match[1]), []).append(_Found(match[2], is_tree))
        elif is_tree and depth and "\\" not in name:
            yield from _attempts(storage, f"{folder}/{name}", fingerprint, depth - 1)
    for partition, attempts in by_partition.items():
        yield from _lost(storage, stage, partition, attempts, fingerprint)


class _Found(NamedTuple):
    attempt: str
    is_tree: bool


def _lost(
    storage: Storage, stage: str, partition: int, attempts: list[_Found], fingerprint: str
) -> Iterator[Leftover]:
    """Yield the attempts of one partition that its receipt does not name."""
    try:
        receipt = read_receipt(storage, stage, partition, fingerprint)
    except DamageError:
        return
    for attempt, is_tree in attempts:
        path = attempt_path(stage, partition, attempt)
        if receipt is None:
            why = "unfinished attempt; may still be at work"
            yield Leftover(path, is_tree, False, why)
        elif receipt.attempt != attempt:
            why = "attempt of a partition that another attempt committed"
            yield Leftover(path, is_tree, True, why)


def _temporaries(storage: Storage, folder: str, before: float) -> Iterator[Leftover]:
    for entry in storage.entries(folder):
        if entry.path.endswith(PARTIAL):
            yield Leftover(
                entry.path, False, entry.modified < before, "temporary file of a killed writer"
            )


def _temporary(storage: Storage, name: str, before: float) -> Iterator[Leftover]:
    """Yield a temporary file of the manifest; only a file system has any."""
    path = storage.local_path(name) if name.endswith(PARTIAL) else None
    if path is not None:
        with suppress(FileNotFoundError):
            old = path.lstat().st_mtime < before
            yield Leftover(name, False, old, "temporary file of a killed writer")


def _unpublished(storage: Storage, before: float) -> Iterator[Leftover]:
    """Yield canonical arrays that a killed ``finalise`` left half built."""
    for name in storage.children(SETS)[0]:
        if name.endswith(PARTIAL):
            newest = max(
                (entry.modified for entry in storage.entries(f"{SETS}/{name}")), default=0.0
            )
            yield Leftover(
                f"{SETS}/{name}", True, newest < before, "half built by a killed finalise"
            )
    for name in storage.children(SETS)[1]:
        if name.endswith(PARTIAL):
            yield from _temporary(storage, f"{SETS}/{name}", before)


def remove_leftovers(storage: Storage, leftovers: Iterable[Leftover]) -> list[Leftover]:
    """Delete what harms nobody, and return it."""
    gone = [leftover for leftover in leftovers if leftover.deletable]
    for leftover in gone:
        (storage.remove_tree if leftover.is_tree else storage.remove)(leftover.path)
    return gone
