"""Scores that stay on a device: the dense answer, and lists equal to those that numpy makes of them."""

import numpy as np
import pytest
import torch
from test_product import CODECS, WEIGHTS, dense_answer, make_term

from streamfluence.readouts import top_k
from streamfluence.readouts.base import DeviceBlock, ScoreBlock
from streamfluence.readouts.self_influence import SelfInfluence
from streamfluence.readouts.top_k import TopK
from streamfluence.scoring.product import _device_blocks, _weighted, rows_per_block
from streamfluence.scoring.read_out import read_out
from streamfluence.scoring.terms import Term

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def device_blocks(codec_name, device, block_rows):
    terms = [make_term(codec_name, seed, weight) for seed, weight in enumerate(WEIGHTS)]
    moved = [Term(t.source, t.codec.to(device), t.queries.to(device), t.weight) for t in terms]
    return terms, _device_blocks(moved, [_weighted(term) for term in moved], block_rows)


@pytest.mark.parametrize("codec_name", CODECS)
@pytest.mark.parametrize("block_rows", [64, 256, 8192])
def test_scores_on_a_device_are_the_dense_answer(codec_name, block_rows, device):
    terms, blocks = device_blocks(codec_name, device, block_rows)
    wanted, start = dense_answer(terms), 0
    scale = np.nanmax(np.abs(wanted))
    for block in blocks:
        assert block.start == start
        got, expected = block.scores, wanted[start : start + len(block.valid)]
        np.testing.assert_array_equal(block.valid, ~np.isnan(expected).any(1))
        assert (got[~block.valid] == 0).all()
        np.testing.assert_allclose(
            got[block.valid], expected[block.valid], atol=3e-6 * scale, rtol=0
        )
        start += len(block.valid)
    assert start == len(wanted)


def random_blocks(device, values, sizes, bad=()):
    """Blocks of scores that take few values, so that ties are everywhere."""
    generator, start = np.random.default_rng(len(sizes)), 0
    for size in sizes:
        scores = generator.integers(-values, values + 1, (size, 5)).astype(np.float32)
        valid = generator.random(size) > 0.1
        scores[~valid] = 0
        known = {
            "self_influence": generator.random(size, np.float32),
            "loss": generator.random(size, np.float32),
            "group": None,
        }
        tensors = torch.from_numpy(scores).to(device), torch.from_numpy(valid).to(device)
        yield (
            DeviceBlock(*tensors, start=start, valid=valid, **known),
            ScoreBlock(start=start, scores=scores, valid=valid, **known),
        )
        start += size


@pytest.mark.parametrize("most_hits", [0, 300, 1 << 24])
@pytest.mark.parametrize("values", [0, 1, 40, 10**6])
@pytest.mark.parametrize("sizes", [(3,), (1, 1, 200, 50), (400, 300, 0, 7, 500), (64,) * 9])
@pytest.mark.parametrize("k", [1, 20, 900])
def test_lists_made_on_a_device_are_those_of_numpy(
    k, sizes, values, most_hits, device, monkeypatch
):
    monkeypatch.setattr(top_k, "_MOST_HITS", most_hits)
    pairs = list(random_blocks(device, values, sizes))
    readouts = {"top_k": TopK(k=k)}
    found, expected = (
        read_out(blocks, readouts, lambda *_: None).states["top_k"]
        for blocks in zip(*pairs, strict=True)
    )
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_states_of_tasks_on_a_device_combine_like_arrays(device):
    pairs = list(random_blocks(device, 9, (100, 80, 60, 90)))
    readout = TopK(k=30)
    whole = read_out([b for _, b in pairs], {"t": readout}, lambda *_: None).states["t"]
    halves = [
        read_out([b for b, _ in half], {"t": readout}, lambda *_: None).states["t"]
        for half in (pairs[:2], pairs[2:])
    ]
    for name, values in readout.combine(*halves).items():
        np.testing.assert_array_equal(values, whole[name])


def test_a_readout_of_arrays_reads_the_scores_of_a_device_block(device):
    pairs = list(random_blocks(device, 9, (100, 80)))
    for block, plain in pairs:
        np.testing.assert_array_equal(block.scores, plain.scores)
    readouts = {"self_influence": SelfInfluence(k=5)}
    found, expected = (
        read_out(blocks, readouts, lambda *_: None).states["self_influence"]
        for blocks in zip(*pairs, strict=True)
    )
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])


def test_a_row_that_overflows_on_a_device_is_taken_out(device):
    _, blocks = device_blocks("float32", device, 256)
    terms = [make_term("float32", seed, weight) for seed, weight in enumerate(WEIGHTS)]
    terms[0].source.encoded.codes[5] = 3e38
    terms[1].source.encoded.codes[7] = torch.nan
    terms = [Term(t.source, t.codec.to(device), t.queries.to(device), t.weight) for t in terms]
    heavy = [_weighted(term) * 1e6 for term in terms]
    for good, block in zip(blocks, _device_blocks(terms, heavy, 256), strict=True):
        expected = good.valid.copy()
        if block.start == 0:
            expected[[5, 7]] = False
        np.testing.assert_array_equal(block.valid, expected)
        assert (block.scores[~block.valid] == 0).all()


def test_a_gpu_takes_more_rows_at_once_within_a_gibibyte():
    assert rows_per_block(64, "cuda") == 1 << 16
    assert 8 * 100_000 * rows_per_block(100_000, "cuda") <= 1 << 30
