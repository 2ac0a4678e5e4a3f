"""Laws of every readout, and each readout against a slow loop over the dense float64 answer.

Scores are small integers, so sums are exact in any order, ties abound, and
"equal" means equal.
"""

import json
import sys
from functools import cache, reduce
from itertools import pairwise

import numpy as np
import pytest

from streamfluence.errors import BudgetError, DamageError, InputError
from streamfluence.readouts.base import NEEDS, Sample, ScoreBlock
from streamfluence.readouts.self_influence import QUANTILES
from streamfluence.registry import member, names

N_EXAMPLES, N_QUERIES, K = 203, 5, 7
MASK = np.random.default_rng(1).random((4, N_EXAMPLES)) < 0.5
OPTIONS = {
    "top_k": {"k": K},
    "self_influence": {"k": K},
    "subset_sum": {"subsets": MASK},
    "outliers": {"k": K, "trees": 10},
}
READOUTS = names("readouts")
WIDTHS = (12, 5)  # of rows at two checkpoints
SAMPLE = Sample(
    tuple(np.random.default_rng(2).normal(size=(90, width)).astype(np.float32) for width in WIDTHS),
    np.arange(90),
    seed=3,
)


def make(name):
    """Return a readout ready for blocks; what it prepares is made once."""
    readout = member("readouts", name)(**OPTIONS.get(name, {}))
    if readout.sample_examples:
        readout.load(prepared(name))
    return readout


@cache
def prepared(name):
    return member("readouts", name)(**OPTIONS.get(name, {})).prepare(SAMPLE)


def random_block(seed, n_examples=N_EXAMPLES, n_queries=N_QUERIES, spread=9):
    random = np.random.default_rng(seed)
    valid = random.random(n_examples) < 0.9
    scores = random.integers(-spread, spread + 1, (n_examples, n_queries)).astype(np.float32)
    return ScoreBlock(
        start=0,
        scores=np.where(valid[:, None], scores, np.float32(0)),
        valid=valid,
        self_influence=random.integers(0, 20, n_examples).astype(np.float32),
        loss=random.integers(0, 50, n_examples).astype(np.float32),
        group=random.integers(-3, 4, n_examples) * 10,
        rows=tuple(
            np.where(valid[:, None], random.normal(size=(n_examples, width)), 0).astype(np.float32)
            for width in WIDTHS
        ),
        weights=(0.5 / n_examples, 0.5 / n_examples),
    )


def rows_of(block, start, stop):
    return ScoreBlock(
        start=block.start + start,
        scores=block.scores[start:stop],
        valid=block.valid[start:stop],
        self_influence=block.self_influence[start:stop],
        loss=block.loss[start:stop],
        group=None if block.group is None else block.group[start:stop],
        rows=tuple(rows[start:stop] for rows in block.rows),
        weights=block.weights,
    )


def without_what_is_not_needed(block, needs):
    """Return what scoring gives a readout that is alone."""
    columns = ("self_influence", "loss", "group")
    held = {"scores": ("scores",), "rows": ("rows",), "columns": columns, "self_influence": ()}
    gone = {field for need in NEEDS if need not in needs for field in held[need]}
    return ScoreBlock(**{**vars(block), **dict.fromkeys(gone)})


def split(block, seed, pieces=9):
    inner = np.random.default_rng(seed).integers(0, N_EXAMPLES + 1, pieces - 1)
    edges = [0, *sorted(inner.tolist()), N_EXAMPLES]
    return [rows_of(block, *edge) for edge in pairwise(edges)]


def assert_same(got, wanted):
    assert got.keys() == wanted.keys()
    for name in wanted:
        assert got[name].dtype == wanted[name].dtype, name
        np.testing.assert_array_equal(got[name], wanted[name], err_msg=name)


def loop_best(values, block, k, sign):
    """Row numbers of the k best valid examples of one query, by a sort in plain Python."""
    pairs = [(-sign * float(values[i]), i) for i in range(len(values)) if block.valid[i]]
    return [row for _, row in sorted(pairs)[:k]]


@pytest.mark.parametrize("name", READOUTS)
@pytest.mark.parametrize("seed", range(6))
def test_any_split_into_blocks_gives_the_state_of_the_whole(name, seed):
    readout, block = make(name), random_block(seed)
    states = [readout.chunk(piece) for piece in split(block, seed)]
    assert_same(reduce(readout.combine, states), readout.chunk(block))


@pytest.mark.parametrize("name", READOUTS)
@pytest.mark.parametrize("seed", range(6))
def test_combine_is_associative(name, seed):
    readout = make(name)
    a, b, c = (readout.chunk(p) for p in split(random_block(seed), seed, pieces=3))
    left, right = (
        readout.combine(readout.combine(a, b), c),
        readout.combine(a, readout.combine(b, c)),
    )
    assert_same(left, right)


@pytest.mark.parametrize("name", READOUTS)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spread", [0, 9, 100_000])
def test_folding_blocks_one_by_one_gives_the_state_of_the_whole(name, seed, spread):
    readout, block = make(name), random_block(seed, spread=spread)
    state = reduce(readout.fold, split(block, seed, pieces=20), {})
    assert_same(state, readout.chunk(block))


@pytest.mark.parametrize("name", READOUTS)
def test_chunk_and_combine_leave_their_arguments_alone(name):
    readout, block = make(name), random_block(0)
    a, b = (readout.chunk(piece) for piece in split(block, 0, pieces=2))
    before = [{key: value.copy() for key, value in state.items()} for state in (a, b)]
    scores = block.scores.copy()
    readout.combine(a, b)
    readout.per_example(block)
    assert_same(a, before[0])
    assert_same(b, before[1])
    np.testing.assert_array_equal(block.scores, scores)


@pytest.mark.parametrize("name", READOUTS)
def test_nothing_kept_is_a_view_of_the_reused_block(name):
    readout, block = make(name), random_block(0)
    kept = [readout.chunk(block), readout.per_example(block), readout.fold({}, block)]
    arrays = (block.scores, block.valid, block.self_influence, block.loss, block.group)
    for array in (value for state in kept for value in state.values()):
        assert not any(np.shares_memory(array, other) for other in arrays)


@pytest.mark.parametrize("name", READOUTS)
def test_per_example_arrays_do_not_depend_on_the_blocks(name):
    readout, block = make(name), random_block(3)
    pieces = [readout.per_example(piece) for piece in split(block, 3)]
    whole = readout.per_example(block)
    assert_same({key: np.concatenate([p[key] for p in pieces]) for key in whole}, whole)
    assert all(len(value) == N_EXAMPLES for value in whole.values())


@pytest.mark.parametrize("name", READOUTS)
def test_a_readout_reads_nothing_that_it_does_not_say_it_needs(name):
    readout, block = make(name), random_block(22)
    alone = without_what_is_not_needed(block, readout.needs)
    assert_same(readout.chunk(alone), readout.chunk(block))
    assert_same(readout.per_example(alone), readout.per_example(block))
    assert_same(readout.fold({}, alone), readout.fold({}, block))


@pytest.mark.parametrize("name", [name for name in READOUTS if make(name).sample_examples])
def test_what_is_prepared_is_the_same_again_and_within_what_was_promised(name):
    again = member("readouts", name)(**OPTIONS.get(name, {}))
    assert_same(again.prepare(SAMPLE), prepared(name))
    assert sum(array.nbytes for array in prepared(name).values()) <= again.prepared_bytes()


@pytest.mark.parametrize("name", READOUTS)
def test_the_state_does_not_grow_with_the_number_of_examples(name):
    readout, block = make(name), random_block(4)
    sizes = [
        {key: value.nbytes for key, value in readout.chunk(rows_of(block, 0, stop)).items()}
        for stop in (150, N_EXAMPLES)
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("name", READOUTS)
def test_what_is_stored_takes_no_more_than_result_bytes(name):
    readout, block = make(name), random_block(5)
    stored = [
        *readout.finalize(readout.chunk(block)).values(),
        *readout.per_example(block).values(),
    ]
    promised = readout.result_bytes(N_EXAMPLES, N_QUERIES)
    assert sum(array.nbytes for array in stored) <= promised


@pytest.mark.parametrize("name", READOUTS)
def test_scores_of_invalid_rows_change_nothing(name):
    readout, block = make(name), random_block(6)
    states = []
    for value in (1e6, -1e6):
        other = ScoreBlock(
            **{**vars(block)}
            | {
                "self_influence": np.where(block.valid, block.self_influence, np.float32(value)),
                "loss": np.where(block.valid, block.loss, np.float32(np.nan)),
            }
        )
        states.append(readout.finalize(readout.chunk(other)))
    assert_same(states[0], states[1])
    assert not any(np.isnan(value).any() for value in states[0].values())


@pytest.mark.parametrize("name", READOUTS)
def test_no_valid_row_at_all_is_a_result(name):
    readout, block = make(name), random_block(7)
    empty = ScoreBlock(
        **{**vars(block), "valid": np.zeros(N_EXAMPLES, bool), "scores": block.scores * 0}
    )
    result = readout.finalize(readout.fold(readout.chunk(rows_of(empty, 0, 0)), empty))
    assert all((rows == -1).all() for key, rows in result.items() if key.endswith("rows"))
    assert all((count == 0).all() for key, count in result.items() if "count" in key)


@pytest.mark.parametrize("name", READOUTS)
def test_no_query_at_all_is_a_result(name):
    readout, block = make(name), random_block(8, n_queries=0)
    whole = readout.finalize(readout.chunk(block))
    assert_same(readout.finalize(reduce(readout.fold, split(block, 8), {})), whole)


@pytest.mark.parametrize("spread", [0, 9, 100_000])
@pytest.mark.parametrize("k", [1, 7, 150, 400])
@pytest.mark.parametrize("side,sign", [("positive", 1), ("negative", -1)])
def test_top_k_is_the_sorted_dense_answer_with_what_is_known_of_each_example(spread, k, side, sign):
    block = random_block(9, spread=spread)
    state = member("readouts", "top_k")(k=k).chunk(block)
    for query in range(N_QUERIES):
        wanted = loop_best(block.scores[:, query].astype(np.float64), block, k, sign)
        listed, padding = np.split(state[f"{side}_rows"][query], [len(wanted)])
        assert listed.tolist() == wanted
        assert (padding == -1).all() and len(listed) + len(padding) == k
        for field, values in (
            ("scores", block.scores[:, query]),
            ("self_influence", block.self_influence),
            ("loss", block.loss),
        ):
            got = state[f"{side}_{field}"][query]
            np.testing.assert_array_equal(got[: len(wanted)], values[wanted])
            assert np.isnan(got[len(wanted) :]).all()


def test_top_k_counts_rows_from_the_start_of_the_whole_set():
    block = random_block(10)
    far = ScoreBlock(**{**vars(block), "start": 5_000_000_000})
    readout = make("top_k")
    near_rows, far_rows = (readout.chunk(b)["positive_rows"] for b in (block, far))
    np.testing.assert_array_equal(far_rows, near_rows + 5_000_000_000)


def test_self_influence_lists_and_sums_what_a_loop_finds():
    block = random_block(11)
    readout = make("self_influence")
    result = readout.finalize(readout.chunk(block))
    wanted = loop_best(block.self_influence, block, K, 1)
    valid = [float(v) for v, keep in zip(block.self_influence, block.valid, strict=True) if keep]
    assert result["top_rows"].tolist() == wanted
    np.testing.assert_array_equal(result["top_loss"], block.loss[wanted])
    np.testing.assert_array_equal(result["top_self_influence"], block.self_influence[wanted])
    assert result["count"] == len(valid) and result["sum"] == sum(valid)
    assert result["mean"] == pytest.approx(sum(valid) / len(valid))
    assert result["loss_mean"] == pytest.approx(block.loss[block.valid].mean(dtype=np.float64))


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e6])
def test_self_influence_quantiles_are_within_five_percent(scale):
    block = random_block(12)
    values = (np.random.default_rng(12).lognormal(0, 3, N_EXAMPLES) * scale).astype(np.float32)
    block = ScoreBlock(**{**vars(block), "self_influence": values})
    readout = make("self_influence")
    got = readout.finalize(readout.chunk(block))["quantiles"]
    wanted = np.quantile(values[block.valid].astype(np.float64), QUANTILES, method="inverted_cdf")
    np.testing.assert_allclose(got, wanted, rtol=0.05)


def test_a_quantile_of_zeros_is_zero():
    block = random_block(13)
    readout = make("self_influence")
    state = readout.chunk(ScoreBlock(**{**vars(block), "self_influence": block.self_influence * 0}))
    assert readout.finalize(state)["quantiles"].tolist() == [0.0] * len(QUANTILES)


def test_aggregate_sums_each_group_and_each_example_as_a_loop_does():
    block = random_block(14)
    readout = make("aggregate")
    state, own = readout.chunk(block), readout.per_example(block)
    wanted = {}
    for row in range(N_EXAMPLES):
        total = sum(float(score) for score in block.scores[row])
        if block.valid[row]:
            count, sums = wanted.get(int(block.group[row]), (0, np.zeros(N_QUERIES)))
            wanted[int(block.group[row])] = (count + 1, sums + block.scores[row])
            assert own["query_sum"][row] == total
            assert own["query_mean"][row] == np.float32(total / N_QUERIES)
        else:
            assert np.isnan(own["query_sum"][row]) and np.isnan(own["query_mean"][row])
    assert state["groups"].tolist() == sorted(wanted)
    assert state["group_counts"].tolist() == [wanted[group][0] for group in sorted(wanted)]
    np.testing.assert_array_equal(
        state["group_sums"], [wanted[group][1] for group in sorted(wanted)]
    )


def test_aggregate_without_groups_has_no_merged_state():
    block = ScoreBlock(**{**vars(random_block(15)), "group": None})
    readout = make("aggregate")
    assert reduce(readout.fold, split(block, 15), {}) == {}


def test_aggregate_refuses_more_groups_than_allowed_and_says_what_to_change():
    readout, block = member("readouts", "aggregate")(max_groups=4), random_block(16)
    with pytest.raises(BudgetError, match=r"7 groups.*max_groups = 4.*coarser"):
        readout.chunk(block)
    few = [ScoreBlock(**{**vars(block), "group": np.full(N_EXAMPLES, g)}) for g in range(5)]
    with pytest.raises(BudgetError, match="5 groups"):
        reduce(readout.fold, few, {})


def test_subset_sum_is_the_sum_over_each_subset():
    block = random_block(17)
    state = make("subset_sum").chunk(block)
    for subset, mask in enumerate(MASK):
        rows = [row for row in range(N_EXAMPLES) if mask[row] and block.valid[row]]
        sums = np.sum([block.scores[row].astype(np.float64) for row in rows], axis=0)
        np.testing.assert_array_equal(state["subset_sums"][subset], sums)
        assert state["subset_counts"][subset] == len(rows)


def test_subsets_from_every_kind_of_file_are_the_same(tmp_path):
    lists = [np.flatnonzero(mask) for mask in MASK]
    np.save(tmp_path / "mask.npy", MASK)
    np.savez(tmp_path / "rows.npz", *lists)
    (tmp_path / "rows.json").write_text(json.dumps([rows.tolist() for rows in lists]))
    (tmp_path / "named.json").write_text(
        json.dumps({str(i): r.tolist() for i, r in enumerate(lists)})
    )
    block, wanted = random_block(18), make("subset_sum").chunk(random_block(18))
    files = ("mask.npy", "rows.npz", "rows.json", "named.json")
    for source in [*(str(tmp_path / file) for file in files), lists]:
        readout = member("readouts", "subset_sum")(subsets=source)
        assert_same(reduce(readout.fold, split(block, 18), {}), wanted)
        assert readout.result_bytes(N_EXAMPLES, N_QUERIES) == 4 * (8 * N_QUERIES + 8)


def test_a_subset_sum_cuts_a_large_block_into_pieces_that_fit(monkeypatch):
    block, wanted = random_block(19), make("subset_sum").chunk(random_block(19))
    monkeypatch.setattr("streamfluence.readouts.subset_sum._MEMBERSHIP_ENTRIES", 4 * 50)
    assert_same(make("subset_sum").chunk(block), wanted)


@pytest.mark.parametrize(
    "subsets,message",
    [
        ([[1, 2, 1]], "names row 1 twice"),
        ([[0], [3, -1]], "subset 1 names row -1"),
        ([[0.5, 1.0]], "must be a list of row numbers"),
        ([1, 2], "must be a list of row numbers"),
        ([[[1], [2, 3]]], "must be a list of row numbers"),
        ("missing.npy", "cannot read subsets from 'missing.npy'"),
        ("subsets.txt", "must end in .npy, .npz, .json"),
        (np.ones((2, 3)), "boolean array of shape"),
        (3, "not int"),
    ],
)
def test_wrong_subsets_are_refused(subsets, message):
    with pytest.raises(InputError, match=message):
        member("readouts", "subset_sum")(subsets=subsets)


@pytest.mark.parametrize("subsets", [MASK[:, :-1], [[0, N_EXAMPLES]]])
def test_subsets_of_another_training_set_are_refused_before_scoring(subsets):
    with pytest.raises(InputError, match=f"{N_EXAMPLES:,} examples"):
        member("readouts", "subset_sum")(subsets=subsets).result_bytes(N_EXAMPLES, N_QUERIES)


def test_a_mask_too_narrow_is_refused_while_scoring():
    readout = member("readouts", "subset_sum")(subsets=MASK[:, :100])
    with pytest.raises(InputError, match="100 columns"):
        readout.chunk(random_block(20))


def test_dense_holds_every_score_and_nan_where_there_is_none():
    block = random_block(21)
    scores = make("dense").per_example(block)["scores"]
    assert scores.dtype == np.float32
    for row in range(N_EXAMPLES):
        wanted = block.scores[row] if block.valid[row] else np.full(N_QUERIES, np.nan)
        np.testing.assert_array_equal(scores[row], wanted)


@pytest.mark.parametrize("name", ["top_k", "self_influence"])
@pytest.mark.parametrize("k", [0, -1, 2.5, True, "ten"])
def test_a_list_length_that_is_not_a_positive_integer_is_refused(name, k):
    with pytest.raises(InputError, match="1 or more"):
        member("readouts", name)(k=k)


def test_outliers_have_the_norms_of_their_rows_at_all_checkpoints_side_by_side():
    block = random_block(23)
    found = make("outliers").per_example(block)
    for row in range(N_EXAMPLES):
        values = [abs(float(x)) for rows in block.rows for x in rows[row]]
        wanted = (sum(values), sum(x * x for x in values) ** 0.5)
        got = (found["l1"][row], found["l2"][row])
        if block.valid[row]:
            assert got == pytest.approx(wanted, rel=1e-6)
        else:
            assert np.isnan(got).all() and np.isnan(found["isolation"][row])


def test_outliers_are_as_isolated_as_scikit_learn_says():
    ensemble = pytest.importorskip("sklearn.ensemble")
    block, seen = random_block(24), np.concatenate(SAMPLE.rows, axis=1)
    forest = ensemble.IsolationForest(n_estimators=10, max_samples="auto", random_state=SAMPLE.seed)
    wanted = -forest.fit(seen).score_samples(np.concatenate(block.rows, axis=1))
    found = make("outliers").per_example(block)["isolation"]
    np.testing.assert_allclose(found[block.valid], wanted[block.valid], rtol=1e-6)


@pytest.mark.parametrize("measure", ["isolation", "l1", "l2"])
def test_the_most_unusual_are_listed_with_their_loss(measure):
    block, readout = random_block(25), make("outliers")
    values, result = readout.per_example(block)[measure], readout.finalize(readout.chunk(block))
    wanted = loop_best(values, block, K, 1)
    assert result[f"{measure}_rows"].tolist() == wanted
    np.testing.assert_array_equal(result[f"{measure}_values"], values[wanted])
    np.testing.assert_array_equal(result[f"{measure}_loss"], block.loss[wanted])


def test_outliers_without_scikit_learn_are_refused_with_the_extra_to_install(monkeypatch, tmp_path):
    kind = member("readouts", "outliers")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    for call in (lambda: kind.pinned({}, tmp_path, 9), lambda: kind().prepare(SAMPLE)):
        with pytest.raises(InputError, match=r"pip install 'streamfluence\[outliers\]'"):
            call()


@pytest.mark.parametrize("change", ["circle", "beyond", "another shape", "lost", "long rows"])
def test_a_forest_that_was_tampered_with_is_refused(change):
    arrays, readout = {name: a.copy() for name, a in prepared("outliers").items()}, make("outliers")
    match change:
        case "circle":
            arrays["left"][0, 0] = 0
        case "beyond":
            arrays["right"][0, 0] = 10_000
        case "another shape":
            arrays["threshold"] = arrays["threshold"][:, 1:]
        case "lost":
            del arrays["usual"]
        case "long rows":
            arrays["feature"][0, 0] = 10_000
    with pytest.raises(DamageError, match="score again"):
        readout.load(arrays)
        readout.chunk(random_block(26))


@pytest.mark.parametrize("option", ["trees", "sample"])
@pytest.mark.parametrize("value", [0, 10**18, 2.5, True])
def test_a_forest_that_nobody_can_grow_is_refused(option, value):
    with pytest.raises(InputError, match=f"{option} must be a whole number, . to "):
        member("readouts", "outliers")(**{option: value})
