"""The Zarr store through which Zarr writes into a run; it records what it wrote.

Zarr's own stores neither keep checksums nor look at them, and create groups above
an attempt as they go; here a key is an object of one attempt and nothing else.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import numpy as np
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype

from streamfluence.store.grid import CHECKSUM_BYTES, INDEX_BYTES, Grid
from streamfluence.store.receipts import StoredObject
from streamfluence.store.storage import Storage


class RecordingStore(Store):
    """Writes one new tree below ``prefix`` and keeps length and checksum of all it wrote.

    The group's own ``zarr.json`` is held back until ``finish``, so that a tree that is
    not complete does not open as one.

    Attributes:
        objects: What was written, by key.
        grids: Fill in an array's grid before its rows are written, to have inner checksums kept.
        linked: Keys that ``link`` made.
    """

    supports_deletes = False
    supports_listing = False
    supports_writes = True

    def __eq__(self, value: object) -> bool:
        return self is value

    def __init__(self, storage: Storage, prefix: str) -> None:
        super().__init__(read_only=False)
        self._storage, self._prefix = storage, prefix
        self._metadata: dict[str, bytes] = {}
        self.objects: dict[str, StoredObject] = {}
        self.grids: dict[str, Grid] = {}
        self.linked: list[str] = []

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return metadata written before; the path is new, so nothing else can be there."""
        found = self._metadata.get(key)
        return None if found is None else prototype.buffer.from_bytes(found)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        return key in self.objects

    async def delete(self, key: str) -> None:
        raise NotImplementedError

    def list(self) -> AsyncIterator[str]:
        raise NotImplementedError

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        raise NotImplementedError

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        raise NotImplementedError

    async def set(self, key: str, value: Buffer) -> None:
        data: Any = value.as_numpy_array()
        if key.endswith("zarr.json"):
            self._metadata[key] = data.tobytes()
        checksums = self._inner_checksums(key, data)
        self.objects[key] = StoredObject(len(data), zlib.crc32(data), checksums)
        if key != "zarr.json":
            await asyncio.to_thread(self._storage.write, f"{self._prefix}/{key}", data)

    def put(self, key: str, data: bytes) -> None:
        """Write metadata that Zarr did not make."""
        self._metadata[key] = data
        self.objects[key] = StoredObject(len(data), zlib.crc32(data))
        self._storage.write(f"{self._prefix}/{key}", data)

    def link(self, source: str, key: str) -> None:
        """Make an object of the run, by its path there, an object of this tree."""
        self.linked.append(key)
        self._storage.link(source, f"{self._prefix}/{key}")

    def finish(self) -> None:
        """Write the group's metadata, which makes the tree a group."""
        self._storage.write(f"{self._prefix}/zarr.json", self._metadata["zarr.json"])

    def _inner_checksums(self, key: str, data: np.ndarray) -> str:
        """Return the checksums of an object's inner chunks if it is those in order, else nothing."""
        name, _, last = key.rpartition("/")
        grid = self.grids.get(name)
        if grid is None or not grid.plain or not last.startswith("c"):
            return ""
        index = int(last.split(".")[1]) if grid.shape else 0
        if len(data) != grid.plain_object_bytes(index) or not _in_order(grid, index, data):
            return ""
        ends = np.arange(1, grid.inner_of(index) + 1) * grid.stride
        stored = data[ends[:, None] - np.arange(CHECKSUM_BYTES, 0, -1)]
        return "".join(f"{value:08x}" for value in stored.view("<u4").ravel())


def _in_order(grid: Grid, index: int, data: np.ndarray) -> bool:
    """Return whether a shard's index says that its inner chunks follow each other in row order."""
    if not grid.sharded:
        return True
    count = grid.inner_of(index)
    tail = data[len(data) - grid.inner_per_object * INDEX_BYTES - CHECKSUM_BYTES : -CHECKSUM_BYTES]
    table = tail.view(np.uint8).tobytes()
    offsets, lengths = np.frombuffer(table, "<u8").reshape(-1, 2)[:count].T
    return bool(
        (offsets == np.arange(count) * grid.stride).all() and (lengths == grid.stride).all()
    )
