"""What killed and overtaken writers leave behind, and which of it may be deleted.

An attempt may be deleted only when its partition has a sound receipt that names
another one: an attempt without a receipt may still be at work.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

from streamfluence.errors import DamageError
from streamfluence.store.receipts import read_receipt
from streamfluence.store.storage import PARTIAL, Storage

_ATTEMPT = re.compile(r"\A(\d{8,})\.(.+)\Z")
_TOPS = ("parts", "sets")


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
    yield from _attempts(storage, "parts", fingerprint)
    before = time.time() - older_than_s
    folders, files = storage.children("")
    for name in files:
        yield from _temporary(storage, name, before)
    for folder in folders:
        if folder not in _TOPS:
            yield from _temporaries(storage, folder, before)
    yield from _unpublished(storage, before)


def _attempts(storage: Storage, folder: str, fingerprint: str) -> Iterator[Leftover]:
    stage = folder.partition("/")[2]
    by_partition: dict[int, list[str]] = {}
    for name in storage.children(folder)[0]:
        match = _ATTEMPT.match(name)
        if match is None:
            yield from _attempts(storage, f"{folder}/{name}", fingerprint)
        else:
            by_partition.setdefault(int(match[1]), []).append(match[2])
    for partition, attempts in by_partition.items():
        yield from _lost(storage, stage, partition, attempts, fingerprint)


def _lost(
    storage: Storage, stage: str, partition: int, attempts: list[str], fingerprint: str
) -> Iterator[Leftover]:
    """Yield the attempts of one partition that its receipt does not name."""
    try:
        receipt = read_receipt(storage, stage, partition, fingerprint)
    except DamageError:
        return
    for attempt in attempts:
        path = f"parts/{stage}/{partition:08d}.{attempt}"
        if receipt is None:
            yield Leftover(path, True, False, "unfinished attempt; may still be at work")
        elif receipt.attempt != attempt:
            yield Leftover(
                path, True, True, "attempt of a partition that another attempt committed"
            )


def _temporaries(storage: Storage, folder: str, before: float) -> Iterator[Leftover]:
    for entry in storage.entries(folder):
        if entry.path.endswith(PARTIAL):
            yield Leftover(
                entry.path, False, entry.modified < before, "temporary file of a killed writer"
            )


def _temporary(storage: Storage, name: str, before: float) -> Iterator[Leftover]:
    """Yield a temporary file of the manifest; only a file system has any."""
    path = storage.local_path(name) if name.endswith(PARTIAL) else None
    if path is not None and path.exists():
        old = path.stat().st_mtime < before
        yield Leftover(name, False, old, "temporary file of a killed writer")


def _unpublished(storage: Storage, before: float) -> Iterator[Leftover]:
    """Yield canonical arrays that a killed ``finalise`` left half built."""
    for name in storage.children("sets")[0]:
        if name.endswith(PARTIAL):
            newest = max((entry.modified for entry in storage.entries(f"sets/{name}")), default=0.0)
            yield Leftover(f"sets/{name}", True, newest < before, "half built by a killed finalise")
