"""The linear datamodeling score against scipy, hand-computed toys and answers known by construction."""

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from streamfluence.errors import InputError
from streamfluence.evaluation import lds

GENERATOR = np.random.default_rng(7)


def half_masks(n_subsets, n_examples):
    order = GENERATOR.random((n_subsets, n_examples)).argsort(axis=1)
    return order < n_examples // 2


@pytest.mark.parametrize("levels", [2, 5, 1000])
@pytest.mark.parametrize("length", [2, 3, 40])
def test_ranks_equal_scipy_with_any_number_of_ties(levels, length):
    values = GENERATOR.integers(levels, size=(6, length)).astype(float)
    np.testing.assert_array_equal(lds.ranks(values), rankdata(values, axis=-1))


@pytest.mark.parametrize("levels", [3, 10, 100_000])
def test_spearman_equals_scipy(levels):
    a = GENERATOR.integers(levels, size=(8, 60)).astype(float)
    b = a + GENERATOR.integers(levels, size=a.shape)
    expected = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(lds.spearman(a, b), expected, atol=1e-12)


def test_spearman_of_a_constant_is_zero_and_not_nan():
    assert lds.spearman(np.ones(5), np.arange(5.0)) == 0.0


def test_a_hand_computed_toy():
    # Removing example 0 raises the loss by 3, 1 by 1, 2 lowers it by 2. Kept sums, negated:
    # {0,1} -> -4, {0,2} -> -1, {1,2} -> 1, {0} -> -3: ranks 1, 3, 4, 2.
    scores = np.array([[3.0], [1.0], [-2.0]])
    masks = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 0, 0]], dtype=bool)
    losses = np.array([[0.1], [0.2], [0.9], [0.3]])  # ranks 1, 2, 4, 3
    # Spearman without ties: 1 - 6 * (0 + 1 + 0 + 1) / (4 * 15) = 0.8
    np.testing.assert_allclose(lds.per_query(scores, masks, losses), [0.8], atol=1e-12)


def test_a_linear_model_is_predicted_perfectly_and_its_negative_perfectly_wrong():
    weights, masks = GENERATOR.normal(size=(30, 4)), half_masks(50, 30)
    losses = (
        masks @ weights
    )  # keeping an example adds its weight: removing it changes the loss by -weight
    assert lds.lds(-weights, masks, losses) == pytest.approx(1.0, abs=1e-12)
    assert lds.lds(weights, masks, losses) == pytest.approx(-1.0, abs=1e-12)


def test_the_score_is_the_mean_of_scipy_over_queries():
    scores, masks = GENERATOR.normal(size=(20, 5)), half_masks(25, 20)
    losses = GENERATOR.normal(size=(25, 5))
    slow = []
    for query in range(5):
        kept = [-sum(scores[i, query] for i in np.flatnonzero(mask)) for mask in masks]
        slow.append(spearmanr(kept, losses[:, query]).statistic)
    assert lds.lds(scores, masks, losses) == pytest.approx(np.mean(slow), abs=1e-12)


def test_a_constant_added_to_every_score_changes_nothing_for_equal_sized_subsets():
    scores, masks, losses = (
        GENERATOR.normal(size=(20, 5)),
        half_masks(25, 20),
        GENERATOR.normal(size=(25, 5)),
    )
    assert lds.lds(scores + 100, masks, losses) == pytest.approx(
        lds.lds(scores, masks, losses), abs=1e-12
    )


def test_the_bootstrap_interval_holds_the_mean_and_narrows_with_more_subsets():
    def interval(n_subsets):
        weights, masks = GENERATOR.normal(size=(60, 20)), half_masks(n_subsets, 60)
        return lds.bootstrap(
            -weights, masks, masks @ weights + 4 * GENERATOR.normal(size=(n_subsets, 20))
        )

    few, many = interval(12), interval(400)
    assert few.low < few.mean < few.high
    assert many.low < many.mean < many.high
    assert many.high - many.low < 0.6 * (few.high - few.low)


def test_the_interval_of_a_nearly_perfect_score_holds_it():
    weights, masks = GENERATOR.normal(size=(500, 300)), half_masks(30, 500)
    losses = masks @ weights + 2 * GENERATOR.normal(size=(30, 300))
    found = lds.bootstrap(-weights, masks, losses)  # plain percentiles end below the mean here
    assert 0.96 < found.mean < 0.99
    assert found.low < found.mean < found.high <= 1


def test_the_bootstrap_interval_covers_the_expected_score_about_as_often_as_it_says():
    noise, weights = 4.0, GENERATOR.normal(size=(60, 8))

    def draw(n_subsets):
        masks = half_masks(n_subsets, 60)
        return masks, masks @ weights + noise * GENERATOR.normal(size=(n_subsets, 8))

    truth = lds.lds(-weights, *draw(20_000))
    inside = 0
    for trial in range(100):
        found = lds.bootstrap(-weights, *draw(60), draws=60, coverage=0.9, seed=trial)
        inside += found.low <= truth <= found.high
    assert 80 <= inside <= 100


def test_the_ceiling_is_what_the_noiseless_outcome_reaches():
    signal = GENERATOR.normal(size=(3000, 6))
    seeds = signal + 1.5 * GENERATOR.normal(size=(5, 3000, 6))
    reached = lds.spearman(signal.T, seeds.mean(0).T).mean()
    assert lds.ceiling(seeds) == pytest.approx(reached, abs=0.01)


def test_the_ceiling_of_repeated_seeds_is_one_and_of_noise_near_zero():
    one = GENERATOR.normal(size=(200, 6))
    assert lds.ceiling(np.stack([one, one])) == pytest.approx(1.0)
    assert lds.ceiling(GENERATOR.normal(size=(3, 5000, 6))) < 0.2


def test_one_seed_against_the_rest_equals_the_slow_formula():
    losses = GENERATOR.normal(size=(3, 20, 4)) + GENERATOR.normal(size=(20, 4))
    slow = []
    for seed in range(3):
        rest = np.delete(losses, seed, axis=0).mean(0)
        slow += [spearmanr(losses[seed, :, q], rest[:, q]).statistic for q in range(4)]
    assert lds.one_against_rest(losses) == pytest.approx(np.mean(slow), abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "masks", "losses", "says"),
    [
        (np.ones((4, 2)), np.ones((5, 3), bool), np.ones((5, 2)), "do not belong together"),
        (np.ones((3, 2)), np.ones((5, 3), bool), np.ones((5, 1)), "do not belong together"),
        (np.ones((3, 2)), np.ones((2, 3), bool), np.ones((2, 2)), "cannot be ranked"),
        (np.full((3, 2), np.nan), np.ones((5, 3), bool), np.ones((5, 2)), "scores hold NaN"),
        (np.ones((3, 2)), np.ones((5, 3), bool), np.full((5, 2), np.inf), "losses hold NaN"),
    ],
)
def test_inputs_that_cannot_be_judged_are_refused_with_the_reason(scores, masks, losses, says):
    with pytest.raises(InputError, match=says):
        lds.lds(scores, masks, losses)


def test_one_seed_has_no_ceiling_and_says_what_to_do():
    with pytest.raises(InputError, match="one more seed"):
        lds.ceiling(np.ones((1, 5, 2)))


def test_the_interval_is_that_of_subsets_and_queries_redrawn_together_one_by_one():
    predicted = GENERATOR.normal(size=(15, 4))
    losses = predicted + GENERATOR.normal(size=(15, 4))
    found = lds.interval(predicted, losses, draws=40, coverage=0.8, seed=3)
    chance, means = np.random.default_rng(3), []
    for _ in range(40):
        queries, subsets = chance.integers(4, size=4), chance.integers(15, size=15)
        pairs = [(predicted[subsets, q], losses[subsets, q]) for q in queries]
        means.append(np.mean([spearmanr(*pair).statistic for pair in pairs]))
    whole = np.mean([spearmanr(predicted[:, q], losses[:, q]).statistic for q in range(4)])
    low, high = np.quantile(means, [0.1, 0.9]) + whole - np.mean(means)
    assert (found.mean, found.low, found.high) == pytest.approx((whole, low, high))


def test_the_ceiling_is_a_rank_correlation_again():
    """Two seeds of correlation r: reliability 2 r / (1 + r), each step by hand."""
    signal = GENERATOR.normal(size=(400, 1))
    seeds = signal + GENERATOR.normal(size=(2, 400, 1))
    rho = spearmanr(seeds[0, :, 0], seeds[1, :, 0]).statistic
    r = 2 * np.sin(np.pi * rho / 6)
    perfect = np.sqrt(2 * r / (1 + r))
    assert lds.ceiling(seeds) == pytest.approx(6 / np.pi * np.arcsin(perfect / 2))
