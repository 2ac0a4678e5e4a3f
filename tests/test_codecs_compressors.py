"""The lossless compressors behind an array: what is allowed, and that a flipped bit is seen."""

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec

from streamfluence.codecs._compressors import compressor_names, zarr_compressors
from streamfluence.errors import InputError

DTYPES = ["uint8", "int8", "uint16", "float16", "float32", "int64"]


def stored(array: np.ndarray, name: str, path) -> zarr.Array:
    made = zarr.create_array(
        path,
        shape=array.shape,
        dtype=array.dtype,
        chunks=array.shape,
        filters=None,
        compressors=zarr_compressors(name, array.dtype),
    )
    made[...] = array
    return made


def smooth(dtype: str) -> np.ndarray:
    """Return numbers that every compressor can shorten."""
    return np.repeat(np.arange(100), 40).reshape(100, 40).astype(dtype)


@pytest.mark.parametrize("name", compressor_names())
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_compressor_gives_back_what_it_was_given(name, dtype, tmp_path):
    array = smooth(dtype)
    np.testing.assert_array_equal(stored(array, name, tmp_path)[...], array)
    codecs = zarr_compressors(name, dtype)
    assert isinstance(codecs[-1], Crc32cCodec)
    assert sum(isinstance(codec, Crc32cCodec) for codec in codecs) == 1


@pytest.mark.parametrize(
    "name", [name for name in compressor_names() if name not in ("auto", "none")]
)
def test_every_compressor_but_none_shortens_what_can_be_shortened(name, tmp_path):
    assert stored(smooth("float32"), name, tmp_path).nbytes_stored() < smooth("float32").nbytes / 4


@pytest.mark.parametrize("name", compressor_names())
def test_a_flipped_bit_is_seen(name, tmp_path):
    array = stored(np.random.default_rng(0).normal(size=(50, 40)).astype("float32"), name, tmp_path)
    (chunk,) = (path for path in (tmp_path / "c").rglob("*") if path.is_file())
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 4
    chunk.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        array[...]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int64"])
def test_auto_leaves_codes_alone(dtype):
    assert zarr_compressors("auto", dtype) == zarr_compressors("none", dtype)
    assert len(zarr_compressors("none", dtype)) == 1


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_auto_shuffles_the_bits_of_floats(dtype):
    codec = zarr_compressors("auto", dtype)[0]
    assert codec.shuffle.value == "bitshuffle"
    assert codec.typesize == np.dtype(dtype).itemsize


@pytest.mark.parametrize("name", ["", "snappy", "lzma", "Zstd"])
def test_other_names_are_refused_with_those_there_are(name):
    with pytest.raises(InputError, match="there are: auto, none, zstd"):
        zarr_compressors(name, "uint8")
