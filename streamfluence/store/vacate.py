"""Free a run folder in which nothing was made: a first job that failed must not block the corrected one."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from streamfluence.errors import StreamfluenceError
from streamfluence.layout import (
    DATA,
    FORMAT_VERSION,
    MANIFEST,
    PARTS,
    PLACE,
    RECEIPTS,
    SCORES,
    SETS,
    generation_path,
)
from streamfluence.store.documents import canonical
from streamfluence.store.run_documents import read_document, read_manifest
from streamfluence.store.storage import Storage

# What holds results; a file in any of them, even of an attempt that never ended, keeps the manifest.
_MADE = (RECEIPTS, PARTS, SCORES, SETS)


def vacate(storage: Storage, manifest: Mapping[str, Any], train: Mapping[str, Any]) -> bool:
    """Remove the documents of another run if nothing was ever made in it; say whether.

    A worker that is still at its first partition finds at its commit that the run is another.

    Args:
        manifest: Of the run that is to be made.
        train: The first generation of its training set. A run of the same two stays.
    """
    if not storage.exists(MANIFEST):
        return False
    with suppress(StreamfluenceError):  # damaged, or of another format: whoever opens it says so
        stored, _ = read_manifest(storage)
        same = _same(stored, {"format_version": FORMAT_VERSION, **manifest})
        if same and storage.exists(path := generation_path("train", 0)):
            there = read_document(storage, path)
            same = _same({key: there[key] for key in train}, train)
        if same or "holds" in stored or _anything(storage):
            return False
        storage.remove_tree(DATA)
        storage.remove(PLACE)
        storage.remove(MANIFEST)
        return True
    return False


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return canonical(one) == canonical(other)


def _anything(storage: Storage) -> bool:
    return any(next(iter(storage.entries(prefix)), None) is not None for prefix in _MADE)
