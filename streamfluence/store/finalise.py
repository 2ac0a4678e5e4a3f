"""Build one canonical Zarr group of an example set, for readers that know nothing of runs.

Its arrays have the axes ``(checkpoint, example, ...)``. Where a committed object is
exactly one object of the long array it becomes that object by a hard link (a copy
inside the store where there are no links), whose bytes are then compared with the
receipt; the rest is read, verified and written again. A sealed listing beside the tree
says what every object of it must be. What is built can be deleted and built again at any time.
"""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import zarr

from streamfluence.columns import EXAMPLE_ID
from streamfluence.errors import DamageError, IncompleteError, InputError
from streamfluence.layout import collect_stage, listing_path, published_path
from streamfluence.store.array_reader import ArrayReader, array_names, open_array
from streamfluence.store.attempt import array_key
from streamfluence.store.digests import content_digest
from streamfluence.store.documents import canonical, plain, seal
from streamfluence.store.grid import Grid
from streamfluence.store.integrity import (
    checksum,
    promised,
    raise_checksum,
    raise_length,
    raise_missing,
)
from streamfluence.store.receipts import Receipt, read_receipts
from streamfluence.store.storage import Storage
from streamfluence.store.zarr_stores import RecordingStore


@dataclass(frozen=True)
class _Source:
    """One array of one partition: its rows begin at ``offset`` of the example axis."""

    receipt: Receipt
    reader: ArrayReader
    offset: int

    @property
    def end(self) -> int:
        return self.offset + self.reader.grid.rows

    @property
    def kind(self) -> bytes:
        """What must agree for parts to be one array; strings may have any width."""
        shape = self.reader.metadata["shape"][1:]
        return canonical([self.reader.metadata["data_type"], len(shape) if self.text else shape])

    @property
    def text(self) -> bool:
        """Whether it holds strings, whose width is that of the longest in the partition."""
        grid = self.reader.grid
        return self.reader.key == EXAMPLE_ID and len(grid.shape) == 2 and grid.dtype == np.uint8

    @property
    def encoding(self) -> bytes:
        """What must agree for an object of one array to be an object of another."""
        return canonical([self.reader.metadata["chunk_grid"], self.reader.metadata["codecs"]])


class Link(NamedTuple):
    """An object that becomes an object of the long array: its partition's receipt, and its key there."""

    receipt: Receipt
    key: str


def finalise(
    storage: Storage,
    fingerprint: str,
    set_name: str,
    n_checkpoints: int,
    n_partitions: int,
    attributes: Mapping[str, Any],
) -> str:
    """Build ``sets/<set_name>.zarr`` and return its path in the run.

    Arrays whose checkpoints differ in width or dtype become one array a checkpoint, ``<name>.<checkpoint>``.

    Raises:
        IncompleteError: If a partition is missing.
        DamageError: If a receipt is damaged, or an object is not what its receipt says.
    """
    stages = [collect_stage(set_name, checkpoint) for checkpoint in range(n_checkpoints)]
    receipts = [_complete(storage, stage, n_partitions, fingerprint) for stage in stages]
    target = published_path(set_name)
    staged = storage.stage_tree(target)
    store = RecordingStore(storage, staged)
    group = zarr.create_group(store, zarr_format=3, attributes=plain(attributes))
    links: dict[str, Link] = {}
    for name in _common_names(receipts):
        _build(storage, store, group, name, receipts, links)
    store.finish()
    storage.sync(staged, [*store.objects, *links])
    objects = {key: [item.length, item.crc32] for key, item in store.objects.items()}
    objects |= {key: _compared(storage, staged, key, link) for key, link in links.items()}
    listing = {
        "objects": dict(sorted(objects.items())),
        "rests_on": {
            stage: content_digest(found) for stage, found in zip(stages, receipts, strict=True)
        },
    }
    # Without a listing the tree vouches for nothing, so none is there while the two may differ.
    storage.remove(listing_path(set_name))
    storage.publish_tree(staged, target)
    _publish_listing(storage, listing_path(set_name), seal(listing))
    return target


def _publish_listing(storage: Storage, path: str, data: bytes) -> None:
    """Create the listing; one that another finalise made meanwhile stays if it says the same."""
    if not storage.create(path, data) and storage.read(path, len(data)) != data:
        storage.remove(path)
        storage.create(path, data)


def _compared(storage: Storage, staged: str, key: str, link: Link) -> list[int]:
    """Return length and CRC-32 of a linked object, read and found to be what its receipt says."""
    promise = promised(storage, link.receipt, link.key)
    reader = storage.open(f"{staged}/{key}")
    try:
        if reader.size != promise.length:
            raise_length(storage, link.receipt, link.key, reader.size)
        if checksum(reader, promise.length) != promise.crc32:
            raise_checksum(storage, link.receipt, link.key)
    finally:
        reader.close()
    return [promise.length, promise.crc32]


def _complete(storage: Storage, stage: str, n_partitions: int, fingerprint: str) -> list[Receipt]:
    found = dict(read_receipts(storage, stage, fingerprint))
    missing = [partition for partition in range(n_partitions) if partition not in found]
    if missing:
        raise IncompleteError(
            f"{storage.url}: stage {stage} lacks {len(missing)} of {n_partitions} partitions "
            f"(the first: {missing[0]}); collect them first"
        )
    return [_sound(found[partition]) for partition in range(n_partitions)]


def _sound(receipt: Receipt | DamageError) -> Receipt:
    if isinstance(receipt, DamageError):
        raise receipt
    return receipt


def _common_names(receipts: Sequence[Sequence[Receipt]]) -> list[str]:
    every = [set(array_names(receipt)) for stage in receipts for receipt in stage]
    uneven = every[0].union(*every) - every[0].intersection(*every)
    if uneven:
        raise InputError(
            f"not every partition has the arrays {', '.join(sorted(uneven))}; they cannot be one array"
        )
    return sorted(every[0])


def _build(
    storage: Storage,
    store: RecordingStore,
    group: zarr.Group,
    name: str,
    receipts: Sequence[Sequence[Receipt]],
    links: dict[str, Link],
) -> None:
    """Build one array, or one a checkpoint where checkpoints do not fit together."""
    checkpoints = [_sources(storage, name, stage) for stage in receipts]
    kinds = {source.kind for sources in checkpoints for source in sources}
    ends = {sources[-1].end for sources in checkpoints}
    if len(kinds) == 1 and len(ends) == 1:
        links |= _build_array(storage, store, group, array_key(name), checkpoints)
        return
    for checkpoint, sources in enumerate(checkpoints):
        key = array_key(f"{name}.{checkpoint}")
        links |= _build_array(storage, store, group, key, [sources], f"_{checkpoint}")


def _sources(storage: Storage, name: str, receipts: Sequence[Receipt]) -> list[_Source]:
    sources, offset = [], 0
    for receipt in receipts:
        reader = open_array(storage, receipt, name)
        if not reader.shape:
            raise InputError(
                f"array {name!r} has no example axis, so it cannot be part of a long array"
            )
        sources.append(_Source(receipt, reader, offset))
        offset = sources[-1].end
    return sources


def _build_array(
    storage: Storage,
    store: RecordingStore,
    group: zarr.Group,
    key: str,
    checkpoints: list[list[_Source]],
    axis_suffix: str = "",
) -> dict[str, Link]:
    """Write or link every object of one long array; return those that are linked, by their key in it."""
    links: dict[str, Link] = {}
    length = checkpoints[0][-1].end
    first = max(
        (s for sources in checkpoints for s in sources), key=lambda s: s.reader.grid.row_bytes
    )
    try:
        metadata = _canonical_metadata(first.reader.metadata, len(checkpoints), length, axis_suffix)
        store.put(f"{key}/zarr.json", json.dumps(metadata).encode())
        opened: Any = group[key]
        array = opened.with_config({"write_empty_chunks": True})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # The grid was checked; of the rest of its metadata only Zarr knows what it may be.
        where = f"{storage.url}/{first.receipt.path}/{first.reader.key}/zarr.json"
        raise DamageError(f"{where} does not describe an array of a run: {error}") from error
    step = first.reader.grid.object_rows
    for checkpoint, sources in enumerate(checkpoints):
        for index in range(math.ceil(length / step) if first.reader.grid.row_bytes else 0):
            start, stop = index * step, min((index + 1) * step, length)
            found = _as_object(sources, start, stop, first)
            if found is None:
                array[checkpoint, start:stop] = _gather(sources, start, stop, first.reader.grid)
            else:
                place = f"{key}/c.{checkpoint}{first.reader.grid.key(index)[1:]}"
                links[place] = found
                try:
                    store.link(f"{found.receipt.path}/{found.key}", place)
                except FileNotFoundError:
                    raise_missing(storage, found.receipt, found.key)
    return links


def _canonical_metadata(
    metadata: dict[str, Any], n_checkpoints: int, length: int, axis_suffix: str
) -> dict[str, Any]:
    """Return a part's ``zarr.json`` with the checkpoint axis before it and all rows in it."""
    whole = copy.deepcopy(metadata)
    whole["shape"] = [n_checkpoints, length, *metadata["shape"][1:]]
    example, *others = metadata["dimension_names"]
    whole["dimension_names"] = [
        f"checkpoint{axis_suffix}",
        example,
        *(f"{axis}{axis_suffix}" for axis in others),
    ]
    grid = whole["chunk_grid"]["configuration"]
    grid["chunk_shape"] = [1, *grid["chunk_shape"]]
    for codec in whole["codecs"]:
        if codec["name"] == "sharding_indexed":
            codec["configuration"]["chunk_shape"] = [1, *codec["configuration"]["chunk_shape"]]
    return whole


def _as_object(sources: list[_Source], start: int, stop: int, first: _Source) -> Link | None:
    """Return the committed object that holds exactly these rows in the same encoding, if there is one."""
    for source in sources:
        if source.offset <= start and stop <= source.end:
            grid, inside = source.reader.grid, start - source.offset
            if inside % grid.object_rows == 0 and source.encoding == first.encoding:
                key = f"{source.reader.key}/{grid.key(inside // grid.object_rows)}"
                return Link(source.receipt, key)
    return None


def _gather(sources: list[_Source], start: int, stop: int, grid: Grid) -> np.ndarray:
    """Return verified rows of the long array, from as many partitions as they lie in.

    Strings of a partition that needs less width are filled up with zeros.
    """
    out = np.zeros((stop - start, *grid.shape[1:]), grid.dtype)
    for source in sources:
        low, high = max(start, source.offset), min(stop, source.end)
        if low < high:
            rows = np.empty((high - low, *source.reader.shape[1:]), grid.dtype)
            with source.reader as reader:
                reader.read(low - source.offset, high - source.offset, rows)
            out[(slice(low - start, high - start), *map(slice, rows.shape[1:]))] = rows
    return out
