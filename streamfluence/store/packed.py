"""Take the compressed rows out of a stored object, into memory that is already there.

What a frame says of its own size is never believed: it is decoded into a buffer of
the size that the array's chunks have, and a frame that needs more is damage.
"""

import zlib
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc, zstd

from streamfluence.store.grid import CHECKSUM_BYTES, INDEX_BYTES, Grid


def inner_frame(grid: Grid, data: bytes, place: int) -> memoryview:
    """Return the stored bytes of one inner chunk of an object, without its checksum.

    Args:
        place: Of the chunk in the object.

    Raises:
        ValueError: If the object has no such chunk, or its checksum differs.
    """
    start, stop = _range_of(grid, data, place) if grid.sharded else (0, len(data))
    if not 0 <= start <= stop - CHECKSUM_BYTES <= len(data) - CHECKSUM_BYTES:
        raise ValueError(f"chunk {place} lies outside it")
    frame = memoryview(data)[start : stop - CHECKSUM_BYTES]
    stored = bytes(data[stop - CHECKSUM_BYTES : stop])
    if google_crc32c.value(bytes(frame)) != int.from_bytes(stored, "little"):
        raise ValueError(f"chunk {place} differs from its own checksum")
    return frame


def decode(grid: Grid, frame: memoryview, target: np.ndarray) -> None:
    """Decode one inner chunk into ``target``, uint8 of exactly its bytes.

    Raises:
        ValueError: If it is no frame, or holds more or fewer bytes.
    """
    try:
        size = _decode(grid.compressor, frame, target)
    except (RuntimeError, zlib.error) as error:  # what numcodecs raises for a broken frame
        raise ValueError(str(error)) from error
    if size != len(target):
        raise ValueError(f"a chunk holds {size:,} bytes, its array needs {len(target):,}")


def _decode(compressor: str | None, frame: memoryview, target: np.ndarray) -> int:
    if compressor == "zstd":
        zstd.decompress(frame, target)
        return len(target)  # the call says nothing of fewer bytes, only of more
    if compressor == "blosc":
        size = int.from_bytes(frame[4:8], "little")
        if size == len(target):
            blosc.decompress(frame, target)
        return size
    if compressor == "gzip":
        found: Any = zlib.decompressobj(wbits=31).decompress(frame, len(target) + 1)
    else:
        found = frame
    if len(found) == len(target):
        target[:] = np.frombuffer(found, np.uint8)
    return len(found)


def _range_of(grid: Grid, data: bytes, place: int) -> tuple[int, int]:
    """Return where a shard's index, its last bytes, says that an inner chunk lies."""
    tail = grid.inner_per_object * INDEX_BYTES + CHECKSUM_BYTES
    if len(data) < tail:
        raise ValueError("it is shorter than its index")
    index = data[-tail:-CHECKSUM_BYTES]
    if google_crc32c.value(index) != int.from_bytes(data[-CHECKSUM_BYTES:], "little"):
        raise ValueError("its index differs from its own checksum")
    first = place * INDEX_BYTES
    start, length = (
        int.from_bytes(index[first + half : first + half + 8], "little") for half in (0, 8)
    )
    return start, start + length
