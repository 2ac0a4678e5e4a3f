"""`evaluate mislabel` and `evaluate retrieval` against pairs counted one by one, and their refusals."""

import json

import numpy as np
import pytest
from calls import invoke, ok, refused
from hypothesis import given
from hypothesis import strategies as st
from small_job import JOB, write_job

import streamfluence
from streamfluence.evaluation.mislabel import SHARES, Ranking
from streamfluence.evaluation.retrieval import FirstPass, SecondPass, chance_reciprocal_rank
from streamfluence.layout import collect_stage
from streamfluence.run.opened import OpenRun

GROUPED = JOB.replace('path = "train-*.npz"', 'path = "train-*.npz"\nfields = ["x", "y"]').replace(
    'path = "test.npz"', 'path = "test.npz"\nfields = ["x", "y"]'
)
GROUPED = GROUPED.replace('fields = ["x", "y"]', 'fields = ["x", "y"]\ngroup_field = "y"')


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluate")
    write_job(path, job=GROUPED)
    other = path / "other"
    write_job(other, seed=1)
    (other / "model.pt").rename(path / "second.pt")
    two = json.dumps(["model.pt", "second.pt"])
    ok("run", path / "job.toml", path / "run", "--set", f"checkpoints={two}")
    return path


# --- the mathematics ------------------------------------------------------------------------


def counted_auc(flagged, others):
    """Pairs won, ties half, one by one."""
    wins = sum((f > o) + (f == o) / 2 for f in flagged for o in others)
    return wins / (len(flagged) * len(others))


def counted_share(flagged, others, inspected):
    """Expected number of flagged examples in the first ones, ties in random order."""
    found = 0.0
    for value in flagged:
        above = sum(v > value for v in (*flagged, *others))
        level = sum(v == value for v in (*flagged, *others))
        found += min(max((inspected - above) / level, 0.0), 1.0)
    return found / len(flagged)


values = st.lists(st.integers(-3, 3), min_size=1, max_size=30)


@given(values, values, st.integers(0, 30))
def test_auc_and_curve_are_counts_of_pairs_for_any_ties_and_any_blocks(flagged, others, cut):
    ranking = Ranking(np.array(flagged))
    ranking.count(np.array(others[:cut]))
    ranking.count(np.array(others[cut:]))
    found = ranking.detection()
    assert found.auc == pytest.approx(counted_auc(flagged, others))
    total = len(flagged) + len(others)
    expected = [counted_share(flagged, others, round(share * total)) for share in SHARES]
    assert found.found == pytest.approx(expected)


def test_a_perfect_ranking_has_auc_one_and_a_constant_one_half():
    perfect, constant = Ranking(np.array([5.0, 6.0])), Ranking(np.array([1.0, 1.0]))
    perfect.count(np.arange(5.0))
    constant.count(np.ones(5))
    assert perfect.detection().auc == 1.0
    assert constant.detection().auc == 0.5


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 19))
def test_recall_and_rank_over_blocks_equal_a_sort_of_the_dense_matrix(seed, k, cut):
    generator = np.random.default_rng(seed)
    scores = generator.integers(-4, 5, (3, 20)).astype(float)
    relevant = generator.random((3, 20)) < 0.3
    relevant[:, 7] = True
    first = FirstPass(3, k)
    for part in (slice(0, cut), slice(cut, 20)):
        first.add(scores[:, part], relevant[:, part])
    second = SecondPass(first.best)
    for part in (slice(0, cut), slice(cut, 20)):
        second.add(scores[:, part], relevant[:, part])
    for query in range(3):
        order = sorted(range(20), key=lambda row: (-scores[query, row], row))
        hits = sum(relevant[query, row] for row in order[:k])
        assert first.recall(k)[query] == pytest.approx(hits / relevant[query].sum())
        best = max(scores[query, relevant[query]])
        above = sum(scores[query] > best)
        level = sum((scores[query] == best) & ~relevant[query])
        assert second.reciprocal_rank()[query] == pytest.approx(1 / (1 + above + level / 2))


@pytest.mark.parametrize(("n", "relevant"), [(10, 1), (10, 3), (7, 7), (40, 5)])
def test_the_rank_by_chance_is_that_of_shuffled_lists(n, relevant):
    generator = np.random.default_rng(0)
    ranks = [1 + generator.permutation(n)[:relevant].min() for _ in range(20_000)]
    expected = np.mean(1 / np.array(ranks))
    assert chance_reciprocal_rank(n, np.array([relevant])) == pytest.approx(expected, abs=0.012)


def test_the_rank_by_chance_of_one_relevant_example_is_the_harmonic_mean():
    expected = sum(1 / rank for rank in range(1, 101)) / 100
    assert chance_reciprocal_rank(100, np.array([1])) == pytest.approx(expected)


def test_the_rank_by_chance_is_a_mean_over_queries_and_not_over_numbers_of_relevant_ones():
    one, three = (chance_reciprocal_rank(10, np.array([n])) for n in (1, 3))
    several = chance_reciprocal_rank(10, np.array([1, 3, 3, 3]))
    assert several == pytest.approx((one + 3 * three) / 4)


def test_relevant_examples_that_cannot_be_ranked_are_never_found():
    """Their score is -inf; they count as relevant and as found nowhere, however long the list."""
    scores = np.array([[-np.inf, 1.0, 0.0], [-np.inf, 2.0, 5.0]])
    relevant = np.array([[True, False, True], [True, False, False]])
    first = FirstPass(2, 3)
    first.add(scores, relevant)
    assert first.recall(3).tolist() == [0.5, 0.0]
    second = SecondPass(first.best)
    second.add(scores, relevant)
    assert second.reciprocal_rank().tolist() == [0.5, 0.0]


# --- the commands ---------------------------------------------------------------------------


def stored(folder, name, checkpoint):
    store = OpenRun.open(str(folder / "run"))
    receipts = store.receipts(collect_stage("train", checkpoint))
    return np.concatenate([store.read(receipts[p], name) for p in sorted(receipts)])


def test_mislabel_judges_every_ranking_by_the_stored_columns(folder):
    mask = np.random.default_rng(0).random(150) < 0.2
    np.save(folder / "mask.npy", mask)
    report = json.loads(
        ok("evaluate", "mislabel", folder / "run", "--flags", folder / "mask.npy", "--json")
    )
    assert (report["examples"], report["flagged"], report["not_ranked"]) == (150, mask.sum(), 0)
    loss = [stored(folder, "loss", c).astype(float) for c in (0, 1)]
    own = [stored(folder, "self_influence", c).astype(float) for c in (0, 1)]
    expected = {
        "self influence": own[0] / 2 + own[1] / 2,
        "self influence of the last": own[1],
        "loss": loss[1],
        "mean loss": (loss[0] + loss[1]) / 2,
        "gradient norm": stored(folder, "grad_norm", 1),
    }
    rows = {row["ranking"]: row for row in report["rankings"]}
    for name, values in expected.items():
        assert rows[name]["auc"] == pytest.approx(counted_auc(values[mask], values[~mask]))
        assert rows[name]["in_10%"] == pytest.approx(counted_share(values[mask], values[~mask], 15))


def test_rows_ids_and_masks_name_the_same_examples(folder):
    rows = [3, 40, 149]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "rows.txt").write_text("149\n3\n40\n")
    np.savez(folder / "rows.npz", rows=np.array(rows))
    mask = np.zeros(150, bool)
    mask[rows] = True
    np.savez(folder / "as_mask.npz", mask)
    command = ("evaluate", "mislabel", folder / "run", "--json", "--flags")
    reports = {
        ok(*command, folder / name) for name in ("rows.json", "rows.txt", "rows.npz", "as_mask.npz")
    }
    # Without an id field an example's id is its row.
    assert reports == {ok(*command, folder / "rows.json", "--ids")}


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (np.zeros(10, bool), [], "10 flags of shape (10,), but the training set has 150"),
        (np.zeros(150, bool), [], "flags 0 of 150"),
        (np.ones(150, bool), [], "flags 150 of 150"),
        (np.array([1, 150]), [], "names row 150"),
        (np.array([-1]), [], "names row -1"),
        (np.array([4, 4]), [], "lists 4 twice"),
        (np.array([0.5]), [], "whole numbers"),
        (np.array([1, 1000, 2000]), ["--ids"], "2 ids that no training example has (1000, 2000)"),
        (np.ones(150, bool), ["--ids"], "leave out --ids"),
    ],
)
def test_flags_that_cannot_be_used_are_one_sentence(folder, content, options, words):
    np.save(folder / "bad.npy", content)
    message = refused(
        "evaluate", "mislabel", folder / "run", "--flags", folder / "bad.npy", *options
    )
    assert words in message


def test_a_file_of_flags_that_is_not_there_or_not_one_is_one_sentence(folder):
    command = ("evaluate", "mislabel", folder / "run", "--flags")
    assert "No such file" in refused(*command, folder / "absent.npy")
    assert "must end in" in refused(*command, folder / "flags.csv")
    (folder / "broken.json").write_text("[1, 2")
    assert "cannot read" in refused(*command, folder / "broken.json")


def test_an_incomplete_run_is_not_judged(folder, tmp_path):
    write_job(tmp_path)
    ok("run", tmp_path / "job.toml", tmp_path / "run")
    OpenRun.open(str(tmp_path / "run")).discard(collect_stage("train", 0), 2)
    (tmp_path / "rows.json").write_text("[1]")
    result = invoke("evaluate", "mislabel", tmp_path / "run", "--flags", tmp_path / "rows.json")
    assert result.exit_code == 4 and "are missing (2)" in result.stderr


def dense_figures(scores, relevant, k):
    """Recall@k and reciprocal rank of each query from the whole matrix, no ties."""
    recall, reciprocal = [], []
    for query, rows in relevant.items():
        order = np.argsort(-scores[:, query])
        ranks = np.flatnonzero(np.isin(order, rows)) + 1
        recall.append((ranks <= k).sum() / len(rows))
        reciprocal.append(1 / ranks[0])
    return np.mean(recall), np.mean(reciprocal)


def test_retrieval_equals_a_sort_of_the_dense_scores(folder):
    relevant = {0: [5, 77, 149], 3: [10], 6: [0, 1, 2, 3]}
    (folder / "relevant.json").write_text(json.dumps(relevant))
    report = json.loads(
        ok(
            *("evaluate", "retrieval", folder / "run", "--relevant", folder / "relevant.json"),
            *("-k", "20", "--json"),
        )
    )
    recall, reciprocal = report["figures"]
    expected = dense_figures(
        streamfluence.open(str(folder / "run")).scores().compute(), relevant, 20
    )
    assert (recall["value"], reciprocal["value"]) == pytest.approx(expected)
    assert recall["figure"] == "recall@20" and recall["chance"] == pytest.approx(20 / 150)
    assert report["judged_queries"] == 3


def test_retrieval_of_the_same_group_uses_the_stored_groups(folder):
    report = json.loads(ok("evaluate", "retrieval", folder / "run", "--same-group", "--json"))
    groups = np.concatenate([np.load(folder / f"train-{i}.npz")["y"] for i in (0, 1)])
    asked = np.load(folder / "test.npz")["y"]
    relevant = {q: np.flatnonzero(groups == g) for q, g in enumerate(asked)}
    scores = streamfluence.open(str(folder / "run")).scores().compute()
    found = {row["figure"]: row["value"] for row in report["figures"]}
    for k in (1, 10, 100):
        recall, reciprocal = dense_figures(scores, relevant, k)
        assert found[f"recall@{k}"] == pytest.approx(recall)
    assert found["mean reciprocal rank"] == pytest.approx(reciprocal)
    best = np.mean([min(1, 10 / len(rows)) for rows in relevant.values()])
    assert report["figures"][1]["best"] == pytest.approx(best)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "at least one query"),
        ([[1, 2]], "an object from query row"),
        ({"7": [1]}, "queries 0 to 6, not '7'"),
        ({"one": [1]}, "not 'one'"),
        ({"1": []}, "lists no relevant example"),
        ({"1": [150]}, "names row 150"),
        ({"1": ["a"]}, "whole numbers"),
    ],
)
def test_relevant_examples_that_cannot_be_used_are_one_sentence(folder, content, words):
    (folder / "bad.json").write_text(json.dumps(content))
    message = refused("evaluate", "retrieval", folder / "run", "--relevant", folder / "bad.json")
    assert words in message


def test_relevant_ids_that_no_example_has_are_one_sentence(folder):
    (folder / "ids.json").write_text('{"1": [3, 999]}')
    message = refused(
        "evaluate", "retrieval", folder / "run", "--relevant", folder / "ids.json", "--ids"
    )
    assert "1 ids that no training example has (999)" in message


def test_retrieval_wants_one_source_of_relevance_and_a_known_query_set(folder, tmp_path):
    assert "either --relevant" in refused("evaluate", "retrieval", folder / "run")
    message = refused("evaluate", "retrieval", folder / "run", "--same-group", "--queries", "other")
    assert "no query set 'other'; there are: test" in message
    write_job(tmp_path)
    ok("run", tmp_path / "job.toml", tmp_path / "run")
    message = refused("evaluate", "retrieval", tmp_path / "run", "--same-group")
    assert "no group is stored with 'train'" in message
