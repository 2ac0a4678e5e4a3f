"""Write one attempt: an immutable Zarr v3 group that any Zarr reader opens.

Every inner chunk carries a crc32c, chunks of zeros are written like all others,
and floats that were never written read as NaN: what is lost cannot pass for data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
import zarr

from streamfluence.codecs._compressors import zarr_compressors
from streamfluence.columns import COLUMNS
from streamfluence.store.documents import plain
from streamfluence.store.grid import Grid, cut_grid
from streamfluence.store.receipts import StoredObject
from streamfluence.store.storage import Storage
from streamfluence.store.zarr_stores import RecordingStore

CHUNK_KEYS: Any = {"name": "default", "separator": "."}
NO_COMPRESSOR = "none"

# One object in flight: a shard in writing takes twice its size of extra memory.
_ZARR_CONFIG = {"async.concurrency": 2}


@dataclass(frozen=True)
class Content:
    """What a partition holds.

    Attributes:
        arrays: By name, anything numpy takes as an array, of any shape; bool, int, float or complex.
        attributes: Of the group, JSON-able.
        compressors: Name of the lossless compressor of an array; those not named have none.
    """

    arrays: Mapping[str, Any]
    attributes: Mapping[str, Any]
    compressors: Mapping[str, str]


def write_attempt(storage: Storage, prefix: str, content: Content) -> dict[str, StoredObject]:
    """Write a partition as one group and make it durable.

    Returns:
        Length and checksum of every object, by path below ``prefix``.

    Raises:
        StorageError: If the storage fails.
    """
    store = RecordingStore(storage, prefix)
    with zarr.config.set(_ZARR_CONFIG):
        group = zarr.create_group(store, zarr_format=3, attributes=plain(content.attributes))
        for name, values in content.arrays.items():
            array = np.asarray(values)
            axes = axis_names(name, array.ndim)
            compressor = content.compressors.get(name, NO_COMPRESSOR)
            _write_array(store, group, name, array, axes, compressor)
    store.finish()
    storage.sync(prefix, store.objects)
    return store.objects


def array_key(name: str) -> str:
    """Return the folder of an array: its name, with what a path cannot hold written as %XX."""
    if name in ("", ".", "..") or name.startswith("__"):
        raise ValueError(f"{name!r} cannot be the name of an array")
    return quote(name, safe=" ")


def axis_names(name: str, n_axes: int) -> tuple[str, ...]:
    """Return the names of an array's axes; those of unknown arrays are their own, so none clash."""
    known = COLUMNS[name].axes if name in COLUMNS else ()
    return known if len(known) == n_axes else tuple(f"{name}_axis{axis}" for axis in range(n_axes))


def _write_array(
    store: RecordingStore,
    group: zarr.Group,
    name: str,
    array: np.ndarray,
    axes: Sequence[str],
    compressor: str,
) -> None:
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if array.dtype.kind not in "biufc":
        raise ValueError(
            f"array {name!r} has dtype {array.dtype}; store numbers, or the bits as uint"
        )
    codecs = zarr_compressors(compressor, array.dtype)
    grid = cut_grid(array.shape, array.dtype, plain=len(codecs) == 1)
    store.grids[array_key(name)] = grid
    stored = _create_array(group, array_key(name), grid, axes, codecs)
    if array.size:
        stored[...] = array


def _create_array(
    group: zarr.Group, key: str, grid: Grid, axes: Sequence[str], codecs: list[Any]
) -> "zarr.Array[Any]":
    trail = tuple(max(length, 1) for length in grid.shape[1:])
    inner = (grid.inner_rows, *trail) if grid.shape else ()
    return group.create_array(
        key,
        shape=grid.shape,
        dtype=grid.dtype,
        chunks=inner,
        shards=(grid.object_rows, *trail) if grid.sharded else None,
        filters=None,
        compressors=codecs,
        fill_value=np.nan if grid.dtype.kind in "fc" else 0,
        dimension_names=tuple(axes),
        chunk_key_encoding=CHUNK_KEYS,
        config={"write_empty_chunks": True},
    )
