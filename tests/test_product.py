"""Scores of blocks against a dense float64 answer, with every codec there is."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch

from streamfluence.codecs.base import Encoded
from streamfluence.errors import NonFiniteError
from streamfluence.readouts.dense import Dense
from streamfluence.readouts.self_influence import SelfInfluence
from streamfluence.readouts.top_k import TopK
from streamfluence.registry import member, names
from streamfluence.scoring.product import (
    _device_blocks,
    _weighted,
    plain_blocks,
    rows_per_block,
    score_blocks,
)
from streamfluence.scoring.read_out import ReadOut, merge, read_out
from streamfluence.scoring.terms import RowBlock, Term

N_EXAMPLES, N_QUERIES, FEATURES = 700, 9, 96
CODECS = names("codecs")
WEIGHTS = (0.3 / N_EXAMPLES, 1.1 / N_EXAMPLES)


@dataclass
class MemoryRows:
    """Encoded rows in memory, served like stored ones: every block in the same buffers."""

    encoded: Encoded
    flags: np.ndarray
    self_influence: np.ndarray
    loss: np.ndarray
    start: int = 0

    def blocks(self, block_rows):
        codes, scale = self.encoded.codes.numpy(), self.encoded.scale.numpy()
        small = (self.flags, self.self_influence, self.loss)
        buffers = [np.empty((block_rows, *a.shape[1:]), a.dtype) for a in (codes, scale, *small)]
        for low in range(0, len(codes), block_rows):
            stop = min(low + block_rows, len(codes))
            views = [buffer[: stop - low] for buffer in buffers]
            for view, array in zip(views, (codes, scale, *small), strict=True):
                view[:] = array[low:stop]
            yield RowBlock(self.start + low, *views, group=np.arange(low, stop) % 3)

    def part(self, start, stop):
        encoded = Encoded(self.encoded.codes[start:stop], self.encoded.scale[start:stop])
        rest = (array[start:stop] for array in (self.flags, self.self_influence, self.loss))
        return MemoryRows(encoded, *rest, start=self.start + start)


def make_term(codec_name, seed, weight):
    generator = torch.Generator().manual_seed(seed)
    energies = torch.linspace(1, 0.05, FEATURES, dtype=torch.float64)
    rows = torch.randn(N_EXAMPLES, FEATURES, generator=generator) * energies.sqrt().float()
    flags = (torch.rand(N_EXAMPLES, generator=generator) < 0.05).to(torch.uint8)
    rows[flags > 0] = 0
    kind = member("codecs", codec_name)
    codec = kind(kind.allocate(energies, None, seed))
    queries = codec.query(torch.randn(N_QUERIES, FEATURES, generator=generator))
    source = MemoryRows(
        codec.encode(rows),
        flags.numpy(),
        rows.square().sum(1).numpy(),
        torch.rand(N_EXAMPLES, generator=generator).numpy(),
    )
    return Term(source, codec, queries, weight)


@pytest.fixture(params=CODECS)
def terms(request):
    return [make_term(request.param, seed, weight) for seed, weight in enumerate(WEIGHTS)]


def dense_answer(terms):
    """Scores by a loop over checkpoints in float64; NaN where a row is flagged at any of them."""
    total = np.zeros((N_EXAMPLES, N_QUERIES))
    for term in terms:
        rows = term.codec.decode(term.source.encoded).double().numpy()
        for query in range(N_QUERIES):
            total[:, query] += term.weight * (rows @ term.queries[query].double().numpy())
        total[term.source.flags > 0] = np.nan
    return total


def all_scores(terms, block_rows):
    """Scores of all blocks, NaN where not valid."""
    pieces = [
        np.where(b.valid[:, None], b.scores, np.nan).astype(np.float32)
        for b in score_blocks(terms, block_rows)
    ]
    return np.concatenate(pieces)


@pytest.mark.parametrize("block_rows", [64, 256, 8192])
def test_scores_are_the_dense_answer_summed_over_checkpoints(terms, block_rows):
    wanted = dense_answer(terms)
    got = all_scores(terms, block_rows)
    scale = np.nanmax(np.abs(wanted))
    np.testing.assert_allclose(got, wanted, atol=3e-6 * scale, rtol=0)


def test_one_checkpoint_needs_no_second_buffer_and_gives_the_same(terms):
    wanted = dense_answer(terms[:1])
    scale = np.nanmax(np.abs(wanted))
    np.testing.assert_allclose(all_scores(terms[:1], 256), wanted, atol=3e-6 * scale, rtol=0)


@pytest.mark.parametrize("cuts", [(0, 1, 700), (0, 3, 67, 411, 700), (0, 350, 351, 700)])
@pytest.mark.parametrize("n_queries", [1, 5, N_QUERIES])
def test_scores_have_the_same_bits_however_rows_are_cut_into_partitions(terms, cuts, n_queries):
    terms = [Term(t.source, t.codec, t.queries[:n_queries], t.weight) for t in terms]
    whole = all_scores(terms, 256)
    parts = [
        [Term(t.source.part(low, high), t.codec, t.queries, t.weight) for t in terms]
        for low, high in pairwise(cuts)
    ]
    np.testing.assert_array_equal(np.concatenate([all_scores(part, 256) for part in parts]), whole)


def test_blocks_carry_the_rows_number_and_what_is_known_of_each_example(terms):
    first, second = (term.source for term in terms)
    for block in score_blocks(terms, 128):
        rows = slice(block.start, block.start + len(block.valid))
        own = WEIGHTS[0] * first.self_influence[rows] + WEIGHTS[1] * second.self_influence[rows]
        np.testing.assert_allclose(block.self_influence, own, rtol=1e-6)
        np.testing.assert_allclose(
            block.loss, (first.loss[rows] + second.loss[rows]) / 2, rtol=1e-6
        )
        np.testing.assert_array_equal(
            block.valid, (first.flags[rows] == 0) & (second.flags[rows] == 0)
        )
        np.testing.assert_array_equal(block.group, np.arange(rows.start, rows.stop) % 3)
        assert (block.scores[~block.valid] == 0).all()
        assert block.scores.dtype == block.self_influence.dtype == block.loss.dtype == np.float32


def test_every_checkpoint_is_read_by_its_own_codec():
    """Two codecs of the default family that give bits to other directions."""
    terms = []
    for seed, (energies, weight) in enumerate(zip((1, 3), WEIGHTS, strict=True)):
        generator = torch.Generator().manual_seed(seed)
        spectrum = torch.linspace(1, 0, FEATURES, dtype=torch.float64) ** energies + 1e-3
        kind = member("codecs", "bands")
        codec = kind(kind.allocate(spectrum, 30, seed))
        rows = torch.randn(N_EXAMPLES, FEATURES, generator=generator) * spectrum.sqrt().float()
        queries = codec.query(torch.randn(N_QUERIES, FEATURES, generator=generator))
        nothing = np.zeros(N_EXAMPLES, np.float32)
        flags = np.zeros(N_EXAMPLES, np.uint8)
        source = MemoryRows(codec.encode(rows), flags, nothing, nothing)
        terms.append(Term(source, codec, queries, weight))
    wanted = dense_answer(terms)
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(all_scores(terms, 256), wanted, atol=3e-6 * scale, rtol=0)


def test_self_influence_is_the_score_of_a_row_for_itself():
    term = make_term("float32", 0, 1.0 / N_EXAMPLES)
    queries = term.codec.decode(term.source.encoded)[:N_QUERIES]
    block = next(score_blocks([Term(term.source, term.codec, queries, term.weight)], 64))
    np.testing.assert_allclose(np.diag(block.scores), block.self_influence[:N_QUERIES], rtol=1e-5)


READOUTS = {"top_k": TopK(k=20), "self_influence": SelfInfluence(k=5), "dense": Dense()}


def read(terms, block_rows=128):
    kept = []
    result = read_out(score_blocks(terms, block_rows), READOUTS, lambda *args: kept.append(args))
    return result, kept


def test_what_is_read_out_agrees_with_sorting_the_dense_answer(terms):
    result, _ = read(terms)
    wanted = dense_answer(terms)
    for query in range(N_QUERIES):
        good = np.flatnonzero(~np.isnan(wanted[:, query]))
        best = good[np.argsort(-wanted[good, query], kind="stable")][:20]
        listed = result.states["top_k"]["positive_rows"][query]
        np.testing.assert_allclose(wanted[listed, query], wanted[best, query], rtol=1e-4)
    assert result.examples == N_EXAMPLES
    assert result.invalid == np.isnan(wanted[:, 0]).sum() > 0


def test_what_readouts_keep_of_examples_comes_in_order_and_is_no_view(terms):
    _, kept = read(terms)
    assert {name for name, _, _ in kept} == {"dense"}
    assert [start for _, start, _ in kept] == list(range(0, N_EXAMPLES, 128))
    scores = np.concatenate([arrays["scores"] for _, _, arrays in kept])
    np.testing.assert_array_equal(scores, all_scores(terms, 128))


def test_merging_readings_of_parts_gives_the_reading_of_the_whole(terms):
    whole, _ = read(terms)
    parts = []
    for low, high in ((0, 300), (300, 300), (300, 301), (301, N_EXAMPLES)):
        part = [Term(t.source.part(low, high), t.codec, t.queries, t.weight) for t in terms]
        parts.append(read(part)[0])
    merged = merge(READOUTS, parts)
    assert (merged.examples, merged.invalid) == (whole.examples, whole.invalid)
    assert merged.states.keys() == whole.states.keys()
    for name, state in whole.states.items():
        for key, value in state.items():
            if value.dtype == np.float64:  # sums round in another order
                np.testing.assert_allclose(merged.states[name][key], value, rtol=1e-12)
            else:
                np.testing.assert_array_equal(merged.states[name][key], value)


def test_merging_nothing_is_a_reading_of_nothing():
    assert merge(READOUTS, []) == ReadOut()


def test_a_row_whose_scores_overflow_is_taken_out_and_counted():
    term = make_term("float32", 0, 1.0)
    good = int(np.flatnonzero(term.source.flags == 0)[5])
    before = read([term])[0]
    term.source.encoded.codes[good, 0] = float("inf")
    result, kept = read([term])
    assert result.invalid == before.invalid + 1
    assert not np.isnan(result.states["top_k"]["positive_scores"]).any()
    assert good not in result.states["top_k"]["positive_rows"]
    scores = np.concatenate([arrays["scores"] for _, _, arrays in kept])
    assert np.isnan(scores[good]).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_query_that_is_not_finite_is_refused_by_its_number(value):
    term = make_term("float32", 0, 1.0)
    term.queries[4, 2] = value
    with pytest.raises(NonFiniteError, match=r"queries \[4\] are not finite"):
        next(score_blocks([term]))


def test_checkpoints_that_cover_other_rows_are_a_broken_invariant():
    first, second = (make_term("float32", seed, 1.0) for seed in (0, 1))
    shorter = Term(second.source.part(0, 650), second.codec, second.queries, 1.0)
    with pytest.raises(AssertionError, match="different blocks"):
        list(score_blocks([first, shorter], 64))


def test_plain_blocks_are_score_blocks_without_scores_and_need_no_codes(terms):
    for plain, scored in zip(plain_blocks(terms, 128), score_blocks(terms, 128), strict=True):
        assert plain.scores is None and plain.rows is None
        assert plain.start == scored.start
        for name in ("valid", "self_influence", "loss", "group"):
            np.testing.assert_array_equal(getattr(plain, name), getattr(scored, name))


@pytest.mark.parametrize("n_queries", [0, 1, 64, 1000, 5000, 100_000, 10_000_000])
def test_a_block_has_whole_padding_and_its_scores_fit_where_a_block_can(n_queries):
    rows = rows_per_block(n_queries, memory=64 << 20)
    assert rows % 64 == 0 and 64 <= rows <= 8192
    assert rows == 64 or rows * n_queries * 8 <= 64 << 20
    assert rows_per_block(64) == 8192


@pytest.mark.parametrize("how", ["scores", "a device", "rows alone"])
def test_blocks_hold_decoded_rows_of_every_checkpoint_where_they_are_asked_for(terms, how):
    match how:
        case "scores":
            blocks = score_blocks(terms, 128, with_rows=True)
        case "a device":
            blocks = _device_blocks(terms, [_weighted(term) for term in terms], 128, with_rows=True)
        case "rows alone":
            blocks = plain_blocks(terms, 128, with_rows=True)
    wanted = [term.codec.decode(term.source.encoded).numpy() for term in terms]
    bad = np.any([term.source.flags > 0 for term in terms], axis=0)
    blocks = list(blocks)
    for checkpoint, rows in enumerate(wanted):
        found = np.concatenate([block.rows[checkpoint] for block in blocks])
        np.testing.assert_array_equal(found, np.where(bad[:, None], np.float32(0), rows))
    assert all(block.weights == WEIGHTS for block in blocks)
    np.testing.assert_array_equal(np.concatenate([block.valid for block in blocks]), ~bad)


def test_columns_that_were_not_read_are_not_made_up():
    term = make_term("float32", 0, 1.0)
    term.source.self_influence = term.source.loss = None
    term.source.blocks = lambda size: iter(
        [RowBlock(0, *encoded_of(term), term.source.flags, None, None)]
    )
    (block,) = score_blocks([term])
    assert block.self_influence is None and block.loss is None and block.group is None


def encoded_of(term):
    return term.source.encoded.codes.numpy(), term.source.encoded.scale.numpy()
