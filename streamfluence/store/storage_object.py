"""A run in an object store (S3 and what speaks like it), through obstore.

A put is atomic and durable, so there is nothing to flush. A document is created
by a conditional put. When that is refused the content is compared, because a put
whose answer was lost is repeated and then finds its own object.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError, PreconditionError
from obstore.store import ObjectStore, from_url

from streamfluence.errors import DamageError, InputError, StorageError
from streamfluence.store.storage import (
    DOCUMENT_BYTES,
    PARTIAL,
    Entry,
    ObjectReader,
    Storage,
    checked_path,
)
from streamfluence.store.unique import unique_name

_PARALLEL_REQUESTS = 16
_REQUEST_BYTES = 8 << 20
_WINDOW_BYTES = 32 << 20


class ObjectStorage(Storage):
    """Objects below one prefix of a bucket.

    Args:
        store: An obstore store that is already set to the run's prefix.
        url: How an error message names it.
    """

    def __init__(self, store: ObjectStore, url: str) -> None:
        self.store = store
        self.url = url

    @classmethod
    def connect(cls, url: str) -> "ObjectStorage":
        """Open a URL obstore knows, e.g. ``s3://bucket/run``; credentials come from the environment."""
        try:
            return cls(from_url(url), url)
        except (BaseError, ValueError) as error:
            raise InputError(
                f"cannot use {url} as a run: {error}; see obstore for what a URL needs"
            ) from error

    def read(self, path: str, limit: int | None = None) -> bytes:
        with self._errors("read", path):
            found = obstore.get(self.store, checked_path(path))
            if limit is None or found.meta["size"] <= limit:
                return bytes(found.bytes())
            return bytes(obstore.get_range(self.store, path, start=0, end=limit + 1))

    def read_many(
        self, paths: Iterable[str], limit: int = DOCUMENT_BYTES
    ) -> list[bytes | DamageError | None]:
        with ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
            return list(pool.map(lambda path: self._read_if_there(path, limit), paths))

    def open(self, path: str) -> ObjectReader:
        return _RangeReader(self, checked_path(path))

    def write(self, path: str, data: Any) -> None:
        with self._errors("write", path, missing=False):
            obstore.put(self.store, checked_path(path), memoryview(data).cast("B"))

    def create(self, path: str, data: bytes) -> bool:
        with self._errors("create", path, missing=False):
            try:
                obstore.put(
                    self.store, checked_path(path), data, mode="create", use_multipart=False
                )
                return True
            except (AlreadyExistsError, PreconditionError):
                return self.read(path) == data
            except NotSupportedError as error:
                raise StorageError(
                    f"{self.url} has no conditional put (If-None-Match), so two workers could erase each "
                    "other's receipts; choose a store that has it, or a POSIX folder"
                ) from error

    def sync(self, prefix: str, names: Iterable[str]) -> None:
        pass

    def exists(self, path: str) -> bool:
        with self._errors("look for", path):
            try:
                obstore.head(self.store, checked_path(path))
            except FileNotFoundError:
                return False
        return True

    def entries(self, prefix: str) -> Iterator[Entry]:
        with self._errors("list", prefix):
            for batch in obstore.list(self.store, checked_path(prefix)):
                for item in batch:
                    yield Entry(item["path"], item["size"], item["last_modified"].timestamp())

    def children(self, prefix: str) -> tuple[list[str], list[str]]:
        with self._errors("list", prefix):
            found = obstore.list_with_delimiter(
                self.store, checked_path(prefix) if prefix else None
            )
        folders = [path.rsplit("/", 1)[-1] for path in found["common_prefixes"]]
        return sorted(folders), sorted(item["path"].rsplit("/", 1)[-1] for item in found["objects"])

    def strange(self, prefix: str) -> Iterator[tuple[str, str]]:
        yield from ()  # an object store has neither links nor devices

    def remove(self, path: str) -> None:
        with self._errors("remove", path), suppress(FileNotFoundError):
            obstore.delete(self.store, checked_path(path))

    def remove_tree(self, prefix: str) -> None:
        names = [entry.path for entry in self.entries(prefix)]
        if names:
            with self._errors("remove", prefix), suppress(FileNotFoundError):
                obstore.delete(self.store, names)

    def move(self, source: str, target: str) -> None:
        self.link(source, target)
        self.remove(source)

    def link(self, source: str, target: str) -> None:
        with self._errors("copy", source):
            obstore.copy(self.store, checked_path(source), checked_path(target))

    def stage_tree(self, target: str) -> str:
        return f"{target}.{unique_name()}{PARTIAL}"

    def publish_tree(self, staged: str, target: str) -> None:
        """Copy object by object over what is there, the group's metadata last; then remove the rest."""
        names = [entry.path.removeprefix(f"{staged}/") for entry in self.entries(staged)]
        for name in sorted(names, key=lambda name: name == "zarr.json"):
            self.link(f"{staged}/{name}", f"{target}/{name}")
        for entry in list(self.entries(target)):
            if entry.path.removeprefix(f"{target}/") not in names:
                self.remove(entry.path)
        self.remove_tree(staged)

    def local_path(self, path: str) -> Path | None:
        return None

    def _read_if_there(self, path: str, limit: int) -> bytes | None:
        try:
            return self.read(path, limit)
        except FileNotFoundError:
            return None

    @contextmanager
    def _errors(self, action: str, path: str, missing: bool = True) -> Iterator[None]:
        """Turn what obstore raises into a ``StorageError``; see ``operating_system_errors``."""
        try:
            yield
        except (BaseError, OSError) as error:
            if missing and isinstance(error, FileNotFoundError):
                raise
            reason = str(error).split("\n")[0][:300]
            raise StorageError(
                f"cannot {action} {self.url}/{path}: {reason}; check the bucket, the credentials and the "
                "network, then run the same command again"
            ) from error


class _RangeReader(ObjectReader):
    """Reads ahead in windows, because every request costs a round trip."""

    def __init__(self, storage: ObjectStorage, path: str) -> None:
        self._storage, self._path = storage, path
        self._start, self._window = 0, np.empty(0, np.uint8)
        with storage._errors("open", path):
            self.size = obstore.head(storage.store, path)["size"]

    def read_into(self, offset: int, target: Any) -> int:
        view, done = np.frombuffer(memoryview(target).cast("B"), np.uint8), 0
        while done < len(view) and offset + done < self.size:
            ready = self._at(offset + done)[: len(view) - done]
            view[done : done + len(ready)] = ready
            done += len(ready)
        return done

    def _at(self, offset: int) -> np.ndarray:
        """Return the bytes from ``offset`` to the end of the window that holds it."""
        if not self._start <= offset < self._start + len(self._window):
            self._start, self._window = offset, self._fetch(offset)
        return self._window[offset - self._start :]

    def _fetch(self, start: int) -> np.ndarray:
        stop = min(start + _WINDOW_BYTES, self.size)
        starts = range(start, stop, _REQUEST_BYTES)
        with self._storage._errors("read", self._path), ThreadPoolExecutor(len(starts)) as pool:
            parts = list(pool.map(lambda begin: self._range(begin, stop), starts))
        return np.concatenate(parts)

    def _range(self, begin: int, stop: int) -> np.ndarray:
        end = min(begin + _REQUEST_BYTES, stop)
        data = obstore.get_range(self._storage.store, self._path, start=begin, end=end)
        return np.frombuffer(memoryview(data), np.uint8)
