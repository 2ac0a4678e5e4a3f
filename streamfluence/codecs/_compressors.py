"""The lossless compressors an array of a run may be stored with, by name.

All of them are registered Zarr v3 codecs, so readers of other languages open
them. A checksum always comes last: it covers the bytes as they are stored, and
blosc alone gives a flipped bit back in silence.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from streamfluence.errors import InputError

AUTO = "auto"


def _blosc(
    inside: Literal["lz4", "zstd"], shuffle: Literal["noshuffle", "shuffle", "bitshuffle"]
) -> Callable[[int], list[Any]]:
    return lambda item_bytes: [
        BloscCodec(cname=inside, shuffle=shuffle, clevel=3, typesize=item_bytes)
    ]


# From the bytes of one number to the codecs before the checksum.
_COMPRESSORS: Mapping[str, Callable[[int], list[Any]]] = {
    "none": lambda item_bytes: [],
    "zstd": lambda item_bytes: [ZstdCodec(level=3)],
    "gzip": lambda item_bytes: [GzipCodec(level=5)],
    "lz4": _blosc("lz4", "noshuffle"),  # Zarr v3 specifies lz4 only inside blosc
    "blosc-shuffle-lz4": _blosc("lz4", "shuffle"),
    "blosc-shuffle-zstd": _blosc("zstd", "shuffle"),
    "blosc-bitshuffle-lz4": _blosc("lz4", "bitshuffle"),
    "blosc-bitshuffle-zstd": _blosc("zstd", "bitshuffle"),
}


def compressor_names() -> list[str]:
    """Return the names that ``zarr_compressors`` knows, ``auto`` first."""
    return [AUTO, *_COMPRESSORS]


def zarr_compressors(name: str, dtype: np.dtype | str) -> list[Any]:
    """Return the bytes-to-bytes codecs of a Zarr v3 array, its crc32c last.

    Args:
        name: One of ``compressor_names()``; ``auto`` takes what suits ``dtype``.
        dtype: Of the array that is stored.

    Raises:
        InputError: If there is no such compressor; the message lists those there are.
    """
    dtype = np.dtype(dtype)
    chosen = _suited(dtype) if name == AUTO else name
    if chosen not in _COMPRESSORS:
        raise InputError(
            f"no compressor is called {name!r}; there are: {', '.join(compressor_names())}"
        )
    return [*_COMPRESSORS[chosen](dtype.itemsize), Crc32cCodec()]


def _suited(dtype: np.dtype) -> str:
    """Codes are noise, which nothing shortens; floats share exponents, which bitshuffle lines up.

    tools/bench/compressors.py: packed codes 1.00x; float32 rows 1.14x, with lz4 as with zstd, but
    at 1.4 times the speed.
    """
    return "blosc-bitshuffle-lz4" if dtype.kind in "fc" else "none"
