"""Free a run folder in which nothing was made: a first job that failed must not block the corrected one."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from streamfluence.errors import StreamfluenceError
from streamfluence.layout import FORMAT_VERSION, MANIFEST, PARTS, QUERIES, RECEIPTS, SCORES, SETS
from streamfluence.store.documents import canonical
from streamfluence.store.run_documents import read_manifest
from streamfluence.store.storage import Storage

# What holds results; a file in any of them, even of an attempt that never ended, keeps the manifest.
_MADE = (RECEIPTS, PARTS, SCORES, SETS)


def vacate(storage: Storage, manifest: Mapping[str, Any]) -> bool:
    """Remove manifest and query sets of another run if nothing was ever made in it; say whether.

    A worker that is still at its first partition finds at its commit that the run is another.

    Args:
        manifest: Of the run that is to be made; one that is the same stays.
    """
    if not storage.exists(MANIFEST):
        return False
    with suppress(StreamfluenceError):  # damaged, or of another format: whoever opens it says so
        stored, _ = read_manifest(storage)
        wanted = json.loads(canonical({"format_version": FORMAT_VERSION, **manifest}))
        if canonical(stored) == canonical(wanted) or "holds" in stored or _anything(storage):
            return False
        for name in storage.children(QUERIES)[1]:
            storage.remove(f"{QUERIES}/{name}")
        storage.remove(MANIFEST)
        return True
    return False


def _anything(storage: Storage) -> bool:
    return any(next(iter(storage.entries(prefix)), None) is not None for prefix in _MADE)
