"""Documents of a run that never change once they are there, the manifest first of all.

Whoever comes second finds the same content and goes on, or learns which keys differ.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from streamfluence import __version__
from streamfluence.errors import DamageError, InputError
from streamfluence.layout import FORMAT_VERSION, MANIFEST, holds_rows
from streamfluence.store.documents import (
    canonical,
    differences,
    is_sealed,
    parse,
    plain,
    seal,
    unseal,
)
from streamfluence.store.receipts import stages
from streamfluence.store.shapes import Document, checked_document, checked_manifest
from streamfluence.store.storage import DOCUMENT_BYTES, Storage

_WRITER = "streamfluence_version"


def create_manifest(storage: Storage, manifest: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Create the manifest or find the same one; return it and the version that wrote it.

    Raises:
        InputError: If another one is there; the message names the keys that differ.
    """
    wanted = json.loads(canonical({"format_version": FORMAT_VERSION, **manifest}))
    try:
        checked_manifest(wanted, "this manifest")
    except DamageError as error:  # before it lies there and nothing can read it
        raise InputError(
            f"no run can be made of this job: {str(error).partition(';')[0]}"
        ) from error
    if storage.create(MANIFEST, seal({_WRITER: __version__, **wanted}, indent=2)):
        return Document(wanted, f"{storage.url}/{MANIFEST}"), __version__
    stored, written_by = read_manifest(storage)
    rows = any(holds_rows(stage) for stage in stages(storage))
    empty = "" if rows else f" (no rows are committed yet; to start anew, remove {storage.url})"
    _refuse_other(f"{storage.url} holds another run{empty}", stored, wanted)
    return stored, written_by


def read_manifest(storage: Storage) -> tuple[dict[str, Any], str]:
    """Return the manifest and the version of streamfluence that wrote it.

    Raises:
        InputError: If there is none, or its format is not the one this version reads.
        DamageError: If it is damaged.
    """
    try:
        data = storage.read(MANIFEST, DOCUMENT_BYTES)
    except FileNotFoundError:
        raise InputError(
            f"{storage.url} is not a run: it has no {MANIFEST}; check the path, or start one with "
            "`streamfluence run`"
        ) from None
    if not is_sealed(data):
        _refuse_other_format(_parsed(data), storage.url)
    content = _unseal(data, f"{storage.url}/{MANIFEST}")
    _refuse_other_format(content, storage.url)
    written_by = str(content.pop(_WRITER, "unknown"))
    return checked_manifest(content, f"{storage.url}/{MANIFEST}"), written_by


def fingerprint_of(manifest: Mapping[str, Any]) -> str:
    """Return the sha256 of a manifest's canonical JSON."""
    return sha256(canonical(manifest)).hexdigest()


def create_document(storage: Storage, path: str, content: Mapping[str, Any]) -> bool:
    """Create a document; False if the same one was there, ``InputError`` if a different one."""
    wanted = json.loads(canonical(plain(content)))
    if storage.create(path, seal(wanted, indent=2)):
        return True
    what = f"{storage.url}/{path} already exists and differs"
    _refuse_other(what, read_document(storage, path), wanted)
    return False


def replace_document(storage: Storage, path: str, content: Mapping[str, Any]) -> None:
    """Put a document in the place of the one that is there, in one step.

    Raises:
        InputError: If it is not what such a document must be.
    """
    wanted = json.loads(canonical(plain(content)))
    try:
        checked_document(wanted, path, "what was asked for", {})
    except DamageError as error:
        raise InputError(str(error).partition(";")[0]) from error
    storage.replace(path, seal(wanted, indent=2))


def read_document(
    storage: Storage, path: str, manifest: Mapping[str, Any] | None = None
) -> Document:
    """Return a document; ``InputError`` if there is none, ``DamageError`` if it is damaged.

    Args:
        manifest: Of the run it must fit.
    """
    where = f"{storage.url}/{path}"
    try:
        content = _unseal(storage.read(path, DOCUMENT_BYTES), where)
    except FileNotFoundError:
        raise InputError(f"{storage.url} has no {path}") from None
    return checked_document(content, path, where, manifest or {})


def _unseal(data: bytes, where: str) -> dict[str, Any]:
    try:
        return unseal(data, where)
    except DamageError as error:
        # Its content follows from the job, so the same job makes the same document.
        raise DamageError(
            f"{error}; remove it and repeat the command that made the run: the same job writes the same "
            "document again, and what is committed stays valid"
        ) from error


def _refuse_other(what: str, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if canonical(stored) != canonical(wanted):
        raise InputError(
            f"{what}: {differences(stored, wanted)}; choose another place, or ask for what is stored"
        )


def _parsed(data: bytes) -> Any:
    """Return what another format may have written as JSON, None if it is not JSON."""
    try:
        return parse(data, MANIFEST)
    except DamageError:
        return None


def _refuse_other_format(content: Any, url: str) -> None:
    """Refuse a run of another format before anything else of it is interpreted."""
    found = content.get("format_version") if isinstance(content, dict) else None
    if found is None or (type(found) is int and found == FORMAT_VERSION):
        return
    version = str(content.get(_WRITER, "unknown"))[:40]
    raise InputError(
        f"{url} has format {str(found)[:40]}, written by streamfluence {version}; this is streamfluence "
        f"{__version__}, which reads format {FORMAT_VERSION} and has no conversion; read it with "
        f"pip install 'streamfluence=={version}', or collect again into another place"
    )
