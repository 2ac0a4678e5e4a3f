"""By what scores of each example are multiplied: laws of every member, and scores against dense formulas."""

import numpy as np
import pytest
import torch
from small_job import _gauss_newton, dense_scores, load, loss_gradients, write_job

import streamfluence
from streamfluence.errors import InputError, NonFiniteError
from streamfluence.registry import member, names
from streamfluence.run.opened import OpenRun
from streamfluence.scoring import product
from streamfluence.scoring.asked import Asked
from streamfluence.stages.export import export
from streamfluence.stages.run import run
from streamfluence.stages.score import score

EXACT = {
    "rows.codec": "float32",
    "rows.bytes": 0,
    "sketch.probes": "exact",
    "projection.name": "identity",
    "curvature.blocks": "joint",
}
DAMPING = 0.01


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("scales")
    write_job(path)
    write_job(path / "other", seed=1)
    state = torch.load(path / "other" / "model.pt", weights_only=True)
    torch.save(state, path / "second.pt")
    run(path / "job.toml", str(path / "one"), EXACT)
    both = {"checkpoints": ["model.pt", "second.pt"], "checkpoint_weights": [0.25, 2.0]}
    run(path / "job.toml", str(path / "two"), EXACT | both)
    return path


def norms(folder, example_set):
    """Return the root of g^T (H + damping)^-1 g of every example of a set, float64."""
    module, x, y, qx, qy = load(folder)
    hessian = _gauss_newton(module, x) + DAMPING * torch.eye(53).double()
    x, y = (x, y) if example_set == "train" else (qx, qy)
    gradients = loss_gradients(module, x, y)
    return (gradients @ torch.linalg.inv(hessian) * gradients).sum(1).sqrt().numpy()


def expected(folder, scale):
    scores = dense_scores(folder, DAMPING, joint=True)
    if scale == "relative":
        return scores / norms(folder, "train")[:, None]
    if scale == "cosine":
        return scores * 150 / norms(folder, "train")[:, None] / norms(folder, "test")
    return scores


def of_columns(scale, **values):
    columns = {
        name: np.asarray(values.get(name, np.ones((2, 5))), np.float32)
        for name in ("self_influence", "grad_norm", "loss")
    }
    return scale.of({name: columns[name] for name in scale.columns})


@pytest.mark.parametrize("name", names("scales"))
def test_multipliers_are_positive_and_finite_whatever_the_rows_are(name):
    scale = member("scales", name)()
    square = np.array([[0.0, 1e-45, 1e-38, 1.0, 3e38], [4.0, 0.0, 1e-20, 2.0, 1e20]], np.float32)
    found = of_columns(scale, self_influence=square, grad_norm=np.sqrt(square))
    assert found.shape == (2, 5) and found.dtype == np.float32
    assert np.all(found > 0) and np.isfinite(found).all()
    assert found[0, 0] == 1 == found[1, 1], "a row of zeros is left as it is"


@pytest.mark.parametrize("name", names("scales"))
def test_the_multiplier_of_an_example_does_not_depend_on_those_beside_it(name):
    scale = member("scales", name)()
    square = np.random.default_rng(0).random((2, 5)).astype(np.float32)
    whole = of_columns(scale, self_influence=square, grad_norm=np.sqrt(square))
    for example in range(5):
        one = square[:, [example]]
        part = of_columns(scale, self_influence=one, grad_norm=np.sqrt(one), loss=np.ones((2, 1)))
        assert np.array_equal(part, whole[:, [example]])


def test_none_multiplies_by_one():
    assert np.array_equal(of_columns(member("scales", "none")()), np.ones((2, 5)))


@pytest.mark.parametrize("scale", ["none", "relative", "cosine"])
def test_scaled_scores_are_the_dense_formula(folder, scale):
    found = streamfluence.open(str(folder / "one")).scores(scale=scale).compute()
    wanted = expected(folder, scale)
    assert np.abs(found - wanted).max() < 2e-4 * np.abs(wanted).max()
    if scale == "cosine":
        assert np.abs(found).max() <= 1 + 1e-5


@pytest.mark.parametrize("scale", ["relative", "cosine"])
def test_with_several_checkpoints_each_is_scaled_before_they_are_summed(folder, scale):
    other = folder / "second"
    if not other.exists():
        run(folder / "job.toml", str(other), EXACT | {"checkpoints": ["second.pt"]})
    one, two = (
        streamfluence.open(str(folder / name)).scores(scale=scale).compute()
        for name in ("one", "second")
    )
    both = streamfluence.open(str(folder / "two")).scores(scale=scale).compute()
    np.testing.assert_allclose(
        both, 0.25 * one + 2.0 * two, rtol=1e-4, atol=1e-5 * np.abs(both).max()
    )


def test_scored_lists_are_those_of_the_scaled_scores_and_say_so(folder, tmp_path):
    path = str(folder / "one")
    rows = sorted(p.stat().st_mtime_ns for p in (folder / "one" / "parts" / "collect").rglob("*"))
    result = score(path, asked=Asked(scale="relative"))
    assert [one["name"] for one in result["scores"]] == ["test-relative"]
    assert result["scores"][0]["scale"] == "relative"
    found = streamfluence.open(path).top("test-relative/3", k=5)
    wanted = expected(folder, "relative")[:, 3]
    assert [row["row"] for row in found["helps"]] == np.argsort(-wanted)[:5].tolist()
    np.testing.assert_allclose(
        [row["score"] for row in found["helps"]], np.sort(wanted)[::-1][:5], rtol=1e-3
    )
    record = found["record"]
    assert record["scale"] == "relative" and "RelatIF" in record["meaning"]
    assert "over the root of a self-influence" in record["unit"]
    assert not [each for each in record["warnings"] if "larger than the query's whole loss" in each]
    exported = export(path, str(tmp_path / "x.csv"), name="test-relative")
    assert exported["record"]["unit"] == record["unit"]
    after = sorted(p.stat().st_mtime_ns for p in (folder / "one" / "parts" / "collect").rglob("*"))
    assert after == rows, "no row was touched"


def test_a_scale_of_the_job_is_pinned_under_the_name_of_the_query_set(folder):
    path = str(folder / "asked")
    run(folder / "job.toml", path, EXACT | {"score.scale": "cosine"})
    assert OpenRun.open(path).read_document("scores/test/score.json")["scale"] == "cosine"
    assert score(path)["scores"][0]["scale"] == "cosine", "asked for again, they are as before"
    with pytest.raises(InputError, match="other settings"):
        score(path, asked=Asked(top_k=7))
    assert "cosine similarity" in streamfluence.open(path).top("test/0", k=1)["record"]["meaning"]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"asked": Asked(scale="relative"), "damping": 0.3}, "under the damping"),
        ({"asked": Asked(scale="relativ")}, "there are: cosine, none, relative"),
    ],
)
def test_a_scale_that_means_nothing_is_refused(folder, options, words):
    with pytest.raises(InputError, match=words):
        score(str(folder / "one"), **options)


class Rows:
    """Stored rows of one checkpoint, in memory."""

    def __init__(self, rows, square):
        self.rows, self.square = rows, square

    def blocks(self, block_rows):
        for start in range(0, len(self.rows), block_rows):
            part = slice(start, start + block_rows)
            square = self.square[part]
            yield product.RowBlock(
                start=start,
                codes=self.rows[part],
                scale=np.empty((len(square), 0), np.float32),
                flags=np.zeros(len(square), np.uint8),
                self_influence=square,
                loss=square,
                columns={"self_influence": square},
            )


def terms(rows, square):
    kind = member("codecs", "float32")
    codec = kind(kind.allocate(torch.ones(rows.shape[1]), None, 0))
    return [product.Term(Rows(rows, square), codec, codec.query(torch.eye(rows.shape[1])), 1.0)]


def test_a_row_of_zeros_is_scored_zero_and_counts():
    rows = np.array([[0.0, 0.0], [3.0, 4.0]], np.float32)
    blocks = product.score_blocks(
        terms(rows, np.array([0.0, 25.0], np.float32)), scale=member("scales", "relative")()
    )
    (block,) = list(blocks)
    np.testing.assert_allclose(block.scores, [[0, 0], [0.6, 0.8]], rtol=1e-6)
    assert block.valid.all()


def test_scores_on_a_device_are_scaled_as_on_a_cpu():
    rows = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    of, scale = terms(rows, np.square(rows).sum(1)), member("scales", "relative")()
    plain = [block.scores.copy() for block in product.score_blocks(of, 64, scale=scale)]
    weighted = [product._weighted(term) for term in of]
    for found, wanted in zip(
        product._device_blocks(of, weighted, 64, scale=scale), plain, strict=True
    ):
        np.testing.assert_allclose(found.scores, wanted, rtol=1e-5, atol=1e-6)


def test_a_scale_that_is_not_positive_and_finite_is_refused():
    class Wrong(member("scales", "none")):
        def of(self, columns):
            return columns["self_influence"]

    rows = np.ones((2, 2), np.float32)
    with pytest.raises(NonFiniteError, match="not positive and finite"):
        list(product.score_blocks(terms(rows, np.array([0.0, 1.0], np.float32)), scale=Wrong()))
