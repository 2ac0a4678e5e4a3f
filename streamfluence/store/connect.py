"""Choose the kind of storage from a URL."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from streamfluence.errors import InputError
from streamfluence.store.storage import Storage
from streamfluence.store.storage_posix import PosixStorage


def open_storage(url: Any) -> Storage:
    """Return the storage of a folder, a ``file://`` URL, an object store's URL, or an obstore store.

    Args:
        url: ``str``, ``os.PathLike``, an ``obstore`` store, or a ``Storage``, which is returned.

    Raises:
        InputError: If it is none of these, or obstore is needed and not installed.
    """
    if isinstance(url, Storage):
        return url
    if isinstance(url, os.PathLike):
        return PosixStorage(Path(url))
    if not isinstance(url, str):
        opened: Storage = _object_storage().ObjectStorage(url, str(url))
        return opened
    if "://" not in url:
        return PosixStorage(Path(url))
    if url.startswith("file://"):
        return PosixStorage(Path(unquote(urlsplit(url).path)))
    connected: Storage = _object_storage().ObjectStorage.connect(url.rstrip("/"))
    return connected


def _object_storage() -> Any:
    try:
        from streamfluence.store import storage_object
    except ModuleNotFoundError as error:
        if error.name != "obstore":
            raise
        raise InputError(
            "a run in an object store needs obstore, which is not installed; pip install 'streamfluence[s3]'"
        ) from error
    return storage_object
