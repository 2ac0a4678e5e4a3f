"""What is committed is read back bit for bit, by us and by plain Zarr, whatever its shape."""

import itertools
import json
import os
import tempfile

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

from streamfluence.codecs._compressors import compressor_names
from streamfluence.errors import DamageError, InputError
from streamfluence.layout import Span
from streamfluence.store import RunStore, grid
from streamfluence.store.grid import cut_grid, parse_grid

DTYPES = ["bool", "uint8", "int8", "uint16", "int64", "float16", "float32", "float64", "complex64"]


@pytest.fixture
def store():
    """Return a run in memory where there is such a folder: what is flushed to a disk is tested elsewhere."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield RunStore.create(f"{folder}/run", {"seed": 0})


@pytest.fixture
def tiny_chunks(monkeypatch):
    """Cut at 1 KiB and 8 KiB, so that small arrays have many chunks and shards."""
    monkeypatch.setattr(grid, "INNER_BYTES", 1 << 10)
    monkeypatch.setattr(grid, "SHARD_BYTES", 8 << 10)


def numbers(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 100, shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_array_of_any_shape_and_dtype_comes_back_bit_for_bit(store, dtype):
    shapes = [(), (1,), (7,), (0,), (5, 0), (0, 3), (300, 17), (2, 3, 4)]
    arrays = {str(shape): numbers(shape, dtype) for shape in shapes}
    receipt = store.commit("sketch/0", 0, arrays)
    for name, values in arrays.items():
        found = store.read(receipt, name)
        assert (found.dtype, found.shape) == (values.dtype, values.shape)
        np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("compressor", compressor_names())
@pytest.mark.parametrize("rows", [1, 96, 331])
def test_every_compressor_gives_back_what_was_committed(store, tiny_chunks, compressor, rows):
    values = numbers((rows, 48), np.float32)
    receipt = store.commit("sketch/0", 0, {"x": values}, compressors={"x": compressor})
    np.testing.assert_array_equal(store.read(receipt, "x"), values)
    part = slice(rows // 3, rows // 2 + 1)
    np.testing.assert_array_equal(store.read(receipt, "x", rows=part), values[part])
    blocks = [block.copy() for block in store.read_blocks(receipt, "x", 10)]
    np.testing.assert_array_equal(np.concatenate(blocks), values)


@pytest.mark.parametrize("rows", [64, 65, 640, 997, 1000, 1024])
def test_plain_zarr_opens_an_attempt_and_finds_the_same(store, tiny_chunks, rows):
    arrays = {
        "rows": numbers((rows, 24), np.uint8),
        "loss": numbers(rows, np.float32),
        "odd/name": numbers(3, int),
    }
    receipt = store.commit(
        "collect/train/0", 4, arrays, {"unit": "loss", "worst": np.float32("nan")}
    )
    group = zarr.open_group(store.storage.local_path(receipt.path), mode="r")
    np.testing.assert_array_equal(group["rows"][:], arrays["rows"])
    np.testing.assert_array_equal(group["loss"][:], arrays["loss"])
    assert group["rows"].metadata.dimension_names == ("example", "code")
    assert group["loss"].metadata.dimension_names == ("example",)
    assert dict(group.attrs) == {"unit": "loss", "worst": "nan"} == store.read_attributes(receipt)
    assert np.isnan(group["loss"].fill_value) and group["rows"].fill_value == 0
    assert store.array_names(receipt) == ["loss", "odd/name", "rows"]
    np.testing.assert_array_equal(store.read_all(receipt)["odd/name"], arrays["odd/name"])


def test_every_inner_chunk_of_every_array_has_a_checksum_and_no_axis_but_rows_is_cut(
    store, tiny_chunks
):
    arrays = {"rows": numbers((500, 24), np.uint8), "loss": numbers(9, np.float32)}
    receipt = store.commit("collect/train/0", 0, arrays, compressors={"loss": "zstd"})
    group = zarr.open_group(store.storage.local_path(receipt.path), mode="r")
    shard = json.loads((store.storage.local_path(receipt.path) / "rows/zarr.json").read_text())[
        "codecs"
    ][0]
    assert shard["name"] == "sharding_indexed"
    assert [codec["name"] for codec in shard["configuration"]["codecs"]] == ["bytes", "crc32c"]
    assert group["rows"].chunks[1] == group["rows"].shards[1] == 24
    loss = json.loads((store.storage.local_path(receipt.path) / "loss/zarr.json").read_text())[
        "codecs"
    ]
    assert [codec["name"] for codec in loss] == ["bytes", "zstd", "crc32c"]


def test_zeros_are_stored_like_any_other_rows(store):
    receipt = store.commit("collect/train/0", 0, {"rows": np.zeros((10, 4), np.uint8)})
    assert receipt.objects["rows/c.0.0"].length == 44


def test_torch_tensors_big_endian_and_strided_arrays_are_stored_as_numpy_sees_them(store):
    tensor = torch.arange(12).reshape(3, 4).T
    arrays = {
        "tensor": tensor,
        "big": np.arange(5, dtype=">f4"),
        "strided": np.arange(20).reshape(4, 5)[::2, ::-1],
    }
    receipt = store.commit("sketch/0", 0, arrays)
    np.testing.assert_array_equal(store.read(receipt, "tensor"), tensor.numpy())
    assert store.read(receipt, "big").dtype == np.dtype("<f4")
    np.testing.assert_array_equal(store.read(receipt, "big"), arrays["big"])
    np.testing.assert_array_equal(store.read(receipt, "strided"), arrays["strided"])


def test_text_is_refused_before_anything_is_committed(store):
    with pytest.raises(ValueError, match="store numbers"):
        store.commit("sketch/0", 0, {"names": np.array(["a", "b"])})
    assert store.missing("sketch/0", 1) == [0] and store.leftovers() == []


def test_an_array_that_is_not_there_is_refused_with_those_that_are(store):
    receipt = store.commit("sketch/0", 0, {"gram": np.eye(2)})
    with pytest.raises(InputError, match="no array 'rows'; it has gram"):
        store.read(receipt, "rows")


def test_a_receipt_tells_what_was_committed(store):
    facts = {"input": {"crc": 7}, "worst": float("inf"), "count": np.int64(3)}
    made = store.commit("collect/train/0", 2, {"loss": np.ones(5)}, facts=facts, span=Span(10, 15))
    found = store.receipt("collect/train/0", 2)
    assert found == made == store.receipts("collect/train/0")[2]
    assert (found.start, found.stop, found.partition, found.stage) == (10, 15, 2, "collect/train/0")
    assert found.facts == {"input": {"crc": 7}, "worst": "inf", "count": 3}
    assert found.fingerprint == store.fingerprint and found.version
    folder = store.storage.local_path(found.path)
    sizes = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert {name: item.length for name, item in found.objects.items()} == sizes
    assert found.nbytes == sum(sizes.values())


def test_rows_of_a_partition_are_taken_from_its_facts_when_no_span_is_given(store):
    receipt = store.commit(
        "collect/train/0", 0, {"loss": np.ones(5)}, facts={"start": 20, "stop": 25}
    )
    assert receipt.span == Span(20, 25)


def test_stages_and_missing_partitions_come_from_receipts_alone(store):
    for stage, partition in [
        ("collect/train/0", 1),
        ("collect/train/0", 3),
        ("sketch/0", 0),
        ("sketch", 2),
    ]:
        store.commit(stage, partition, {"x": np.ones(1)})
    (store.storage.local_path("parts/collect/train/0/00000002.someone")).mkdir()
    (store.storage.local_path("receipts/collect/train/0/.00000002.json.x.partial")).write_text("")
    assert store.missing("collect/train/0", 5) == [0, 2, 4]
    assert sorted(store.receipts("collect/train/0")) == [1, 3]
    assert store.stages() == ["collect/train/0", "sketch", "sketch/0"]
    assert store.missing("collect/train/9", 2) == [0, 1] and store.receipts("nothing") == {}
    assert store.receipt("collect/train/0", 2) is None


def test_a_partition_that_is_committed_is_not_written_again(store):
    first = store.commit("sketch/0", 0, {"x": np.zeros(3)})
    again = store.commit("sketch/0", 0, {"x": np.ones(3)})
    assert again == first and store.read(again, "x").sum() == 0 and store.leftovers() == []


@pytest.mark.parametrize("compressor", ["none", "zstd"])
def test_blocks_of_any_length_are_the_rows_in_order_in_the_callers_buffer(
    store, tiny_chunks, compressor
):
    values = numbers((1000, 24), np.uint8)
    receipt = store.commit("collect/train/0", 0, {"rows": values}, compressors={"rows": compressor})
    for block_rows in (1, 7, 40, 41, 333, 1000, 5000):
        out = np.empty((block_rows, 24), np.uint8)
        starts = itertools.count(0, block_rows)
        for start, block in zip(
            starts, store.read_blocks(receipt, "rows", block_rows, out), strict=False
        ):
            assert np.shares_memory(block, out) and block.base is out
            np.testing.assert_array_equal(block, values[start : start + block_rows])
        assert start + len(block) == 1000


def test_a_read_into_a_buffer_fills_it_and_refuses_one_that_does_not_fit(store):
    values = numbers((30, 4), np.float32)
    receipt = store.commit("collect/train/0", 0, {"rows": values})
    out = np.zeros((10, 4), np.float32)
    assert store.read(receipt, "rows", out=out, rows=slice(20, 30)) is out
    np.testing.assert_array_equal(out, values[20:])
    for wrong in (
        np.zeros((11, 4), np.float32),
        np.zeros((10, 4)),
        np.zeros((4, 10), np.float32).T,
    ):
        with pytest.raises(ValueError, match="out has"):
            store.read(receipt, "rows", out=wrong, rows=slice(20, 30))


@given(
    rows=st.integers(0, 3000),
    row_items=st.integers(0, 3000),
    inner=st.integers(8, 1 << 14),
    shard=st.integers(8, 1 << 17),
)
def test_a_grid_covers_every_row_once_and_keeps_its_limits(rows, row_items, inner, shard):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "INNER_BYTES", inner)
        patch.setattr(grid, "SHARD_BYTES", shard)
        made = cut_grid((rows, row_items), np.dtype("u2"))
        assert made.object_rows % made.inner_rows == 0
        assert made.inner_bytes <= max(inner, made.row_bytes)
        assert sum(
            made.inner_of(i) for i in range(made.n_objects)
        ) * made.inner_rows >= rows * bool(row_items)
        assert made.n_objects == (-(-rows // made.object_rows) if row_items else 0)
        if made.sharded:
            assert (
                made.object_rows * made.row_bytes <= max(shard, made.row_bytes) + made.inner_bytes
            )


@pytest.mark.parametrize("rows", [1024, 4096, 96 * 1024, 262_144])
@pytest.mark.parametrize("row_bytes", [1, 4, 64, 256, 1024])
def test_partitions_of_usual_lengths_are_cut_evenly_so_that_they_can_be_linked(rows, row_bytes):
    made = cut_grid((rows, row_bytes), np.dtype("u1"))
    assert rows % made.object_rows == 0 and made.object_rows % made.inner_rows == 0
    assert made.inner_bytes >= min(256 << 10, rows * row_bytes)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"codecs": [{"name": "bytes"}, {"name": "numcodecs.pickle"}]}, "numcodecs.pickle"),
        ({"data_type": "string"}, "string"),
        ({"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}]}, "little-endian"),
        ({"chunk_grid": {"configuration": {"chunk_shape": [4, 2]}}}, "more than the rows"),
        ({"shape": None}, "describe"),
    ],
)
def test_metadata_that_would_load_something_unknown_is_refused_before_zarr_sees_it(change, what):
    good = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [4, 3],
        "data_type": "float32",
        "chunk_grid": {"configuration": {"chunk_shape": [4, 3]}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
    }
    assert parse_grid(good, "x").plain
    with pytest.raises(DamageError, match=what):
        parse_grid({**good, **change}, "x")


def test_a_codec_hidden_inside_a_shard_is_refused_too():
    inner = {
        "chunk_shape": [2, 3],
        "codecs": [{"name": "evil"}],
        "index_codecs": [{"name": "bytes"}],
    }
    metadata = {
        "shape": [4, 3],
        "data_type": "float32",
        "chunk_grid": {"configuration": {"chunk_shape": [4, 3]}},
        "codecs": [{"name": "sharding_indexed", "configuration": inner}],
    }
    with pytest.raises(DamageError, match="evil"):
        parse_grid(metadata, "x")
