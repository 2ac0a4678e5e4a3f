"""How an array is cut into stored objects and checksummed inner chunks, in pure arithmetic.

Only rows are cut, never the other axes. An inner chunk (2 MiB) is what a reader
checks at once; an object (a Zarr shard of at most 256 MiB, or one plain chunk) is
what is written at once. Where the number of rows allows, both divide it evenly, so
that the objects of equal partitions are also the objects of one long array.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamfluence.errors import DamageError

INNER_BYTES = 2 << 20
SHARD_BYTES = 256 << 20
CHECKSUM_BYTES = 4
INDEX_BYTES = 16

CODECS = frozenset({"bytes", "crc32c", "sharding_indexed", "zstd", "blosc", "gzip"})
_DTYPES = frozenset(
    ["bool", "float16", "float32", "float64", "complex64", "complex128"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)
_PLAIN = ["bytes", "crc32c"]
_AXES = 32  # numpy allows 64; no array of a run has more than four
_LARGEST = 2**53
_MOST_INNER, _MOST_ROW = 64 << 20, 1 << 30


@dataclass(frozen=True)
class Grid:
    """The cut of one array.

    Attributes:
        inner_rows: Rows of an inner chunk; the last of an array is filled up.
        object_rows: Rows of an object, a multiple of ``inner_rows``.
        sharded: Whether an object is a Zarr shard; else it is one inner chunk.
        plain: Whether inner chunks are uncompressed, each followed by its crc32c.
        compressor: Codec before that crc32c, where they are not.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    inner_rows: int
    object_rows: int
    sharded: bool
    plain: bool
    compressor: str | None = None

    @property
    def rows(self) -> int:
        """Length of the first axis; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, uncompressed."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    @property
    def inner_bytes(self) -> int:
        """Bytes of one inner chunk, without its checksum."""
        return self.inner_rows * self.row_bytes

    @property
    def stride(self) -> int:
        """Bytes from one plain inner chunk to the next."""
        return self.inner_bytes + CHECKSUM_BYTES

    @property
    def inner_per_object(self) -> int:
        """Inner chunks of a full object."""
        return self.object_rows // self.inner_rows

    @property
    def n_objects(self) -> int:
        """Number of stored objects; none for an empty array."""
        return math.ceil(self.rows / self.object_rows) if math.prod(self.shape) else 0

    def inner_of(self, index: int) -> int:
        """Return the number of inner chunks stored in object ``index``."""
        rows = min(self.object_rows, self.rows - index * self.object_rows)
        return math.ceil(rows / self.inner_rows)

    def key(self, index: int) -> str:
        """Return the name of object ``index`` in the array's folder."""
        return "c" + f".{index}" * bool(self.shape) + ".0" * (len(self.shape) - 1)

    def most_object_bytes(self) -> int:
        """Return how long an object can be at most; a compressor may add a little to each chunk."""
        index_bytes = self.inner_per_object * INDEX_BYTES + CHECKSUM_BYTES if self.sharded else 0
        return self.inner_per_object * (self.stride + self.inner_bytes // 64 + 4096) + index_bytes

    def plain_object_bytes(self, index: int) -> int:
        """Return the length of object ``index`` of a plain grid."""
        index_bytes = self.inner_per_object * INDEX_BYTES + CHECKSUM_BYTES if self.sharded else 0
        return self.inner_of(index) * self.stride + index_bytes


def cut_grid(shape: tuple[int, ...], dtype: np.dtype, plain: bool = True) -> Grid:
    """Return how to store an array of ``shape``.

    Args:
        plain: Whether no compressor is used.
    """
    rows = max(shape[0], 1) if shape else 1
    row_bytes = dtype.itemsize * math.prod(shape[1:])
    if rows * row_bytes <= INNER_BYTES:
        return Grid(shape, dtype, rows, rows, False, plain)
    inner_limit = max(1, INNER_BYTES // row_bytes)
    object_rows = _even_part(rows, max(1, SHARD_BYTES // row_bytes))
    if object_rows is None:  # e.g. a prime number of rows
        whole = min(math.ceil(rows / inner_limit), max(1, SHARD_BYTES // (inner_limit * row_bytes)))
        return Grid(shape, dtype, inner_limit, inner_limit * whole, True, plain)
    inner_rows = _even_part(object_rows, inner_limit) or inner_limit
    object_rows = math.ceil(object_rows / inner_rows) * inner_rows
    return Grid(shape, dtype, inner_rows, object_rows, True, plain)


def parse_grid(metadata: Mapping[str, Any], where: str) -> Grid:
    """Return the cut that a ``zarr.json`` describes, after checking what it would make us load.

    Raises:
        DamageError: If it names a codec or a data type that no run has, cuts another axis, or
            gives a chunk another size than its rows have.
    """
    try:
        return _parse(metadata)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DamageError(f"{where} does not describe an array of a run: {error}") from error


def _parse(metadata: Mapping[str, Any]) -> Grid:
    shape = _lengths("shape", metadata["shape"])
    outer = _lengths("chunk_shape", metadata["chunk_grid"]["configuration"]["chunk_shape"])
    kind = metadata["data_type"]
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise ValueError(f"data type {kind!r}")
    if math.prod(shape) * np.dtype(kind).itemsize >= _LARGEST:
        raise ValueError(f"shape {shape} is larger than any array")
    names, inner, sharded = _codecs(metadata["codecs"], outer)
    for cut in (outer, inner):
        if len(cut) != len(shape) or cut[1:] != tuple(max(length, 1) for length in shape[1:]):
            raise ValueError(f"chunks {cut} cut more than the rows of {shape}")
    inner_rows, object_rows = (inner[0], outer[0]) if shape else (1, 1)
    if inner_rows < 1 or object_rows % inner_rows or inner_rows > max((*shape[:1], 1)):
        raise ValueError(f"chunks of {inner_rows} in objects of {object_rows} rows, of {shape}")
    compressor = names[1] if len(names) == 3 else None
    grid = Grid(
        shape, np.dtype(kind), inner_rows, object_rows, sharded, compressor is None, compressor
    )
    # What is compressed may be far smaller in its file, so the file's length bounds nothing.
    if compressor and grid.inner_bytes > (_MOST_INNER if inner_rows > 1 else _MOST_ROW):
        raise ValueError(f"a compressed chunk of {grid.inner_bytes:,} bytes")
    for key, wanted in (("zarr_format", 3), ("node_type", "array")):
        if metadata[key] != wanted:
            raise ValueError(f"{key} is {str(metadata[key])[:60]}")
    return grid


def _lengths(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > _AXES:
        raise ValueError(f"{name} {str(value)[:60]}")
    if any(type(length) is not int or not 0 <= length < _LARGEST for length in value):
        raise ValueError(f"{name} {str(value)[:60]}")
    return tuple(value)


def _codecs(codecs: Any, outer: tuple[int, ...]) -> tuple[list[str], tuple[int, ...], bool]:
    """Return codec names and shape of the inner chunks, and whether there is a shard around them."""
    names = [codec["name"] for codec in codecs]
    if not set(names) <= CODECS:
        raise ValueError(f"codecs {sorted(set(names) - CODECS)} are not among {sorted(CODECS)}")
    if any(codec.get("configuration", {}).get("endian", "little") != "little" for codec in codecs):
        raise ValueError("bytes are not little-endian")
    if names == ["sharding_indexed"]:
        inner = codecs[0]["configuration"]
        names, shape, nested = _codecs(
            inner["codecs"], _lengths("chunk_shape", inner["chunk_shape"])
        )
        index, _, _ = _codecs(inner["index_codecs"], outer)
        if nested or index != _PLAIN or inner.get("index_location", "end") != "end":
            raise ValueError("a shard is in a shard, or its index not plain at its end")
        return names, shape, True
    if (
        names[:1] != _PLAIN[:1]
        or names[-1:] != _PLAIN[1:]
        or len(names) > 3
        or names[1:2] == _PLAIN[:1]
    ):
        raise ValueError(f"codecs {names} are not bytes, at most one compressor, and crc32c")
    return names, outer, False


def _even_part(rows: int, limit: int) -> int | None:
    """Return the largest divisor of ``rows`` up to ``limit``, None if it is below an eighth of it."""
    divisors = [
        d for low in range(1, math.isqrt(rows) + 1) if rows % low == 0 for d in (low, rows // low)
    ]
    best = max(divisor for divisor in divisors if divisor <= limit)
    return best if best * 8 >= min(limit, rows) else None
