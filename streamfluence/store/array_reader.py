"""Read rows of a stored array, every byte compared with the receipt before it is used.

Plain arrays are read without Zarr: an object is inner chunks in row order, each
followed by its checksum, so a row's place is arithmetic, and the checksum is taken
from the receipt instead of from the object. That finds a swapped object at its
first chunk, costs no pass over the rest, and needs no memory but the caller's.
Compressed arrays are decoded from verified bytes, into memory of the size they must have.
"""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import google_crc32c
import numpy as np

from streamfluence.errors import BudgetError, InputError
from streamfluence.layout import holds_rows
from streamfluence.store.attempt import array_key
from streamfluence.store.grid import Grid, parse_grid
from streamfluence.store.integrity import (
    open_object,
    promised,
    raise_checksum,
    raise_damage,
    raise_length,
    verified_bytes,
    verified_json,
)
from streamfluence.store.packed import decode, inner_frame
from streamfluence.store.receipts import Receipt
from streamfluence.store.storage import ObjectReader, Storage


class ArrayReader(ABC):
    """Verified rows of one array of one partition; not for several threads at once.

    Attributes:
        shape, dtype: Of the whole array.
        grid: How it is cut.
        key: Its folder in the attempt.
        metadata: Its ``zarr.json``.
    """

    def __init__(
        self, storage: Storage, receipt: Receipt, key: str, metadata: dict[str, Any], grid: Grid
    ) -> None:
        self._storage, self._receipt = storage, receipt
        self.key, self.metadata = key, metadata
        self.grid, self.shape, self.dtype = grid, grid.shape, grid.dtype
        self._scratch = np.empty(0, np.uint8)
        self._in_scratch = -1

    def read(self, start: int, stop: int, out: np.ndarray) -> np.ndarray:
        """Fill ``out`` with rows ``start`` to ``stop`` (of the partition) and return it.

        Args:
            out: C-contiguous, shape ``(stop - start, ...)``, the array's dtype.

        Raises:
            DamageError: If a byte differs from what was committed.
            StorageError: If the storage fails.
            ValueError: If ``out`` does not fit.
        """
        expected = (stop - start, *self.shape[1:]) if self.shape else ()
        if out.shape != expected or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise ValueError(
                f"out has {out.dtype}{out.shape}, rows need {self.dtype}{expected}, C-contiguous"
            )
        if not 0 <= start <= stop <= self.grid.rows:
            raise ValueError(f"rows {start}:{stop} of an array with {self.grid.rows}")
        if out.nbytes:
            self._fill(start, stop, out)
        return out

    def blocks(self, block_rows: int, out: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Yield consecutive blocks of ``block_rows`` rows, the last one shorter.

        Every block is a view of ``out`` (one buffer of ``block_rows`` rows), valid until the next.
        """
        if out is None:
            shape = (min(block_rows, self.grid.rows), *self.shape[1:])
            out = memory_for(shape, self.dtype, f"{self._receipt.path}/{self.key}")
        for start in range(0, self.grid.rows, block_rows):
            stop = min(start + block_rows, self.grid.rows)
            yield self.read(start, stop, out[: stop - start])

    def _fill(self, start: int, stop: int, out: np.ndarray) -> None:
        flat, width, inner_rows = (
            out.reshape(-1).view(np.uint8),
            self.grid.row_bytes,
            self.grid.inner_rows,
        )
        row = start
        while row < stop:
            inner, skip = divmod(row, inner_rows)
            take = min(inner_rows - skip, stop - row)
            target = flat[(row - start) * width : (row - start + take) * width]
            if take == inner_rows:
                self._read_inner(inner, target)
            else:
                target[:] = self._kept(inner)[skip * width : (skip + take) * width]
            row += take

    def _kept(self, inner: int) -> np.ndarray:
        """Return one inner chunk, kept because the next block begins in it."""
        if inner != self._in_scratch:
            self._in_scratch = -1
            if not len(self._scratch):
                self._scratch = np.empty(self.grid.inner_bytes, np.uint8)
            self._read_inner(inner, self._scratch)
            self._in_scratch = inner
        return self._scratch

    @abstractmethod
    def _read_inner(self, inner: int, target: np.ndarray) -> None:
        """Fill ``target``, the bytes of one inner chunk, with verified rows."""

    def close(self) -> None:  # noqa: B027 - nothing to release is a fine answer
        """Close the open object."""

    def __enter__(self) -> "ArrayReader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_array(storage: Storage, receipt: Receipt, name: str) -> ArrayReader:
    """Return the reader of one array of a committed partition.

    Raises:
        InputError: If the partition has no array of that name.
        DamageError: If its metadata or the list of its objects is damaged.
    """
    key = array_key(name)
    if f"{key}/zarr.json" not in receipt.objects:
        raise InputError(
            f"{storage.url}: partition {receipt.partition} of stage {receipt.stage} has no array {name!r}; "
            f"it has {', '.join(array_names(receipt))}"
        )
    metadata = verified_json(storage, receipt, f"{key}/zarr.json")
    grid = parse_grid(metadata, f"{storage.url}/{receipt.path}/{key}/zarr.json")
    _check_rows(storage, receipt, key, metadata, grid)
    objects = [promised(storage, receipt, f"{key}/{grid.key(i)}") for i in range(grid.n_objects)]
    plain = grid.plain and all(
        len(item.blocks) == 8 * grid.inner_of(i) and item.length == grid.plain_object_bytes(i)
        for i, item in enumerate(objects)
    )
    return (_PlainReader if plain else _PackedReader)(storage, receipt, key, metadata, grid)


def memory_for(shape: tuple[int, ...], dtype: np.dtype, what: str) -> np.ndarray:
    """Return memory for rows; ``BudgetError`` where the machine has less, however lazily it gives it."""
    if dtype.itemsize * math.prod(shape) > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise BudgetError(
            f"{what} has rows of shape {shape} and type {dtype}, more than the memory of this machine; "
            "read fewer rows at a time, or use a larger machine"
        )
    return np.empty(shape, dtype)


def _check_rows(
    storage: Storage, receipt: Receipt, key: str, metadata: dict[str, Any], grid: Grid
) -> None:
    """Raise DamageError for an array with a row an example that has not as many as its partition."""
    axes = metadata.get("dimension_names")
    by_example = isinstance(axes, list) and axes[:1] == ["example"]
    wanted = len(receipt.span) if holds_rows(receipt.stage) else 0
    if by_example and wanted and grid.rows != wanted:
        what = f"it has {grid.rows:,} rows, its partition {wanted:,}"
        raise_damage(storage, receipt, f"{key}/zarr.json", what)


def array_names(receipt: Receipt) -> list[str]:
    """Return the names of a partition's arrays, sorted."""
    keys = (key.removesuffix("/zarr.json") for key in receipt.objects if key.endswith("/zarr.json"))
    return sorted(map(unquote, keys))


class _PlainReader(ArrayReader):
    """Reads inner chunks straight into the caller's memory."""

    _open: tuple[int, ObjectReader] | None = None

    def _read_inner(self, inner: int, target: np.ndarray) -> None:
        index, place = divmod(inner, self.grid.inner_per_object)
        reader, key = self._object(index), f"{self.key}/{self.grid.key(index)}"
        got = reader.read_into(place * self.grid.stride, target)
        if got != len(target):
            raise_length(self._storage, self._receipt, key, place * self.grid.stride + got)
        promised_checksum = self._receipt.objects[key].blocks[place * 8 : place * 8 + 8]
        if google_crc32c.value(target) != int(promised_checksum, 16):
            raise_checksum(self._storage, self._receipt, key)

    def _object(self, index: int) -> ObjectReader:
        if self._open is None or self._open[0] != index:
            self.close()
            key = f"{self.key}/{self.grid.key(index)}"
            self._open = (index, open_object(self._storage, self._receipt, key))
        return self._open[1]

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None


class _PackedReader(ArrayReader):
    """Decodes inner chunks of an object that was verified, and is kept, as a whole."""

    _kept_object: tuple[int, bytes] | None = None

    def _read_inner(self, inner: int, target: np.ndarray) -> None:
        index, place = divmod(inner, self.grid.inner_per_object)
        data = self._object(index)
        whole = target
        if len(target) != self.grid.inner_bytes:  # the last rows: the stored chunk is filled up
            whole = np.empty(self.grid.inner_bytes, np.uint8)
        try:
            decode(self.grid, inner_frame(self.grid, data, place), whole)
        except ValueError as error:
            key = f"{self.key}/{self.grid.key(index)}"
            raise_damage(self._storage, self._receipt, key, str(error))
        if whole is not target:
            target[:] = whole[: len(target)]

    def _object(self, index: int) -> bytes:
        if self._kept_object is None or self._kept_object[0] != index:
            self._kept_object = None
            key, limit = f"{self.key}/{self.grid.key(index)}", self.grid.most_object_bytes()
            data = verified_bytes(self._storage, self._receipt, key, limit)
            self._kept_object = (index, data)
        return self._kept_object[1]

    def close(self) -> None:
        self._kept_object = None
