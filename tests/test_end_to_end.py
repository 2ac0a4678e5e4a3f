"""The whole pipeline on a small real job, against the textbook formula in float64."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_job import dense_scores, load, loss_gradients, write_job

import streamfluence
from streamfluence.columns import COLUMNS
from streamfluence.errors import InputError
from streamfluence.run.opened import OpenRun
from streamfluence.stages.run import run
from streamfluence.stages.score import score

EXACT = {"rows.codec": "float32", "rows.bytes": 0, "sketch.probes": "exact"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("job")
    write_job(path)
    return path


def scores_of(folder, name, **overrides):
    target = str(folder / name)
    run(
        folder / "job.toml",
        target,
        {key.replace("__", "."): value for key, value in overrides.items()},
    )
    return streamfluence.open(target).scores().compute()


def assert_close(measured, expected, tolerance=2e-4):
    assert np.abs(measured - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize(
    "projection, blocks",
    [
        ("identity", "layer"),
        ("identity", "joint"),
        ("spectral", "layer"),
        ("spectral", "joint"),
        ("principal", "joint"),
    ],
)
def test_unquantised_scores_are_the_textbook_influence(folder, projection, blocks):
    extra = {"projection.name": projection, "curvature.blocks": blocks}
    measured = scores_of(folder, f"{projection}-{blocks}", **EXACT, **extra)
    assert_close(measured, dense_scores(folder, 0.01, joint=blocks == "joint"))


def test_the_empirical_fisher_takes_the_place_of_the_gauss_newton_matrix(folder):
    measured = scores_of(folder, "fisher", **EXACT, **{"curvature.name": "fisher"})
    assert_close(measured, dense_scores(folder, 0.01, fisher=True))


def test_stored_columns_are_loss_norm_and_self_influence_of_plain_autograd(folder):
    scores_of(folder, "columns", **EXACT)
    stored = row_bytes(folder, "columns")
    module, x, y, _, _ = load(folder)
    gradients = loss_gradients(module, x, y)
    own = len(x) * np.diag(dense_scores(folder, 0.01, of_training=True))
    np.testing.assert_allclose(stored["self_influence"], own, rtol=1e-4)
    np.testing.assert_allclose(stored["grad_norm"], gradients.norm(dim=1), rtol=1e-4)
    losses = torch.nn.functional.cross_entropy(module(x), y, reduction="none").detach()
    np.testing.assert_allclose(stored["loss"], losses, rtol=1e-4, atol=1e-6)


def test_every_array_of_stored_rows_is_the_column_of_its_name(folder):
    scores_of(folder, "table", **EXACT)
    groups = list((folder / "table" / "parts" / "collect").rglob("zarr.json"))
    arrays = {
        (p.parent.name, text["data_type"], tuple(text["dimension_names"]))
        for p in groups
        if "data_type" in (text := json.loads(p.read_text()))
    }
    assert {name for name, *_ in arrays} <= COLUMNS.keys()
    for name, dtype, axes in arrays:
        assert (dtype, axes) == (COLUMNS[name].dtype or dtype, COLUMNS[name].axes), name
    needed = {name for name, column in COLUMNS.items() if not column.optional}
    assert needed <= {name for name, *_ in arrays}


def test_another_damping_at_scoring_time_needs_no_new_rows(folder):
    scores_of(folder, "redamp", **EXACT)
    path = str(folder / "redamp")
    before = sorted(p for p in Path(path).rglob("*") if "collect" in str(p))
    measured = streamfluence.open(path).scores(damping=0.3).compute()
    assert_close(measured, dense_scores(folder, 0.3))
    score(path, damping=0.3)
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="positive and finite"):
            streamfluence.open(path).scores(damping=wrong)
    assert sorted(p for p in Path(path).rglob("*") if "collect" in str(p)) == before


def test_stored_bands_of_the_default_job_keep_the_scores(folder):
    exact = dense_scores(folder, 0.01)
    measured = scores_of(folder, "bands", **{"rows.bytes": 64})
    for query in range(exact.shape[1]):
        assert np.corrcoef(measured[:, query], exact[:, query])[0, 1] > 0.99


def test_top_lists_the_largest_and_smallest_scores(folder):
    scores = scores_of(folder, "bands", **{"rows.bytes": 64})
    found = streamfluence.open(str(folder / "bands")).top("test/3", k=5)
    order = np.argsort(-scores[:, 3])
    assert [row["row"] for row in found["helps"]] == order[:5].tolist()
    assert [row["row"] for row in found["hurts"]] == order[::-1][:5].tolist()
    np.testing.assert_allclose(
        [row["score"] for row in found["helps"]], scores[order[:5], 3], rtol=1e-6
    )
    assert "positive: the example helps" in found["record"]["meaning"]


def test_repeating_a_finished_run_writes_nothing(folder):
    scores_of(folder, "repeated")
    top = folder / "repeated"
    listing = lambda: {p: p.stat().st_mtime_ns for p in [top, *sorted(top.rglob("*"))]}  # noqa: E731
    before = listing()
    run(folder / "job.toml", str(folder / "repeated"), {})
    assert listing() == before


def row_bytes(folder, name):
    """All stored training rows of a run, in the order of examples."""
    store = OpenRun.open(str(folder / name))
    receipts = store.receipts("collect/train/0")
    return {
        key: np.concatenate([store.read(receipts[p], key) for p in sorted(receipts)])
        for key in ("rows", "scale", "self_influence", "grad_norm", "loss")
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"compute.partition_examples": 16},
        {"compute.partition_examples": 160},
        {"compute.executor": "processes", "compute.workers": 2},
        {"compute.executor": "dask", "compute.workers": 2},
    ],
    ids=["small partitions", "one partition", "processes", "dask"],
)
def test_partitioning_and_workers_change_no_bit(folder, changes):
    reference = scores_of(folder, "bits")
    name = "bits-" + "-".join(map(str, changes.values()))
    measured = scores_of(folder, name, **changes)
    for key, array in row_bytes(folder, "bits").items():
        assert np.array_equal(array, row_bytes(folder, name)[key]), key
    assert np.array_equal(measured, reference)
    one, other = (OpenRun.open(str(folder / n)).receipt("scores/test", 0) for n in ("bits", name))
    for key in ("top_k.positive_scores", "top_k.negative_rows"):
        pair = [
            OpenRun.open(str(folder / n)).read(r, key) for n, r in (("bits", one), (name, other))
        ]
        assert np.array_equal(*pair), key


def test_an_ensemble_is_the_mean_of_its_models(folder):
    other = folder.parent / "other"
    write_job(other, seed=1)
    torch.save(torch.load(other / "model.pt", weights_only=True), folder / "second.pt")
    single = [
        scores_of(folder, f"single-{name[:-3]}", **EXACT, **{"checkpoints": [name]})
        for name in ("model.pt", "second.pt")
    ]
    # A pattern is as many checkpoints as it matches.
    both = scores_of(folder, "both", **EXACT, **{"checkpoints": ["*.pt"]})
    assert_close(both, (single[0] + single[1]) / 2, 1e-5)
    weights = {"checkpoints": ["*.pt"], "checkpoint_weights": [0.25, 2.0]}
    weighted = scores_of(folder, "weighted", **EXACT, **weights)
    assert_close(weighted, 0.25 * single[0] + 2.0 * single[1], 1e-5)
    with pytest.raises(InputError, match="1 checkpoint_weights for 2 checkpoints"):
        scores_of(folder, "one", **weights | {"checkpoint_weights": [1.0]})


def test_every_other_projection_and_codec_runs_end_to_end(folder):
    exact = dense_scores(folder, 0.01)
    for projection in ("factored", "gaussian", "rademacher", "sparse_jl", "mask"):
        for codec in ("float16", "int8"):
            changes = {"projection.name": projection, "projection.width": 53, "rows.codec": codec}
            measured = scores_of(folder, f"{projection}-{codec}", **changes)
            assert np.corrcoef(measured.ravel(), exact.ravel())[0, 1] > 0.5, (projection, codec)


def test_the_record_says_what_the_numbers_are(folder):
    scores_of(folder, "bands", **{"rows.bytes": 64})
    record = streamfluence.open(str(folder / "bands")).top("0", k=1)["record"]
    json.dumps(record)
    assert record["curvature"] == "gauss_newton, layer"
    assert (record["damping"], record["damping_rule"]) == (0.01, "given")
    assert record["curvature_from"] == "3 exact columns"
    assert record["missing_partitions"] == []
    assert record["examples"] == 150


def test_a_margin_measures_how_much_a_query_loses_when_an_example_goes(folder):
    measured = scores_of(folder, "margin", **EXACT, **{"queries.test.measurement": "margin"})
    assert_close(measured, dense_scores(folder, 0.01, measurement="margin"))


BARE_LOSS = """
import torch
from torch import nn


def model(checkpoint):
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    module.load_state_dict(torch.load(checkpoint, weights_only=True))
    return module.eval()


def loss(module, batch):
    return nn.functional.cross_entropy(module(batch["x"]), batch["y"], reduction="none")
"""


def test_a_bare_loss_falls_back_to_the_fisher_and_says_so(folder):
    (folder / "bare.py").write_text(BARE_LOSS)
    measured = scores_of(folder, "bare", **EXACT, **{"task": "bare.py"})
    assert_close(measured, dense_scores(folder, 0.01, fisher=True))
    record = streamfluence.open(str(folder / "bare")).top("0", k=1)["record"]
    assert record["curvature"] == "fisher, layer"
    assert "empirical Fisher instead" in record["curvature_note"]


def test_bf16_is_close_and_its_effect_is_reported(folder):
    measured = scores_of(folder, "bf16", **EXACT, **{"compute.precision": "bf16"})
    exact = dense_scores(folder, 0.01)
    assert np.corrcoef(measured.ravel(), exact.ravel())[0, 1] > 0.99
    record = streamfluence.open(str(folder / "bf16")).top("0", k=1)["record"]
    assert 0.99 < record["precision_cosine"] < 1.0


def test_excluded_parameters_take_no_part_and_are_named(folder):
    scores_of(folder, "excluded", **{"model.exclude": ["0.*"]})
    record = streamfluence.open(str(folder / "excluded")).top("0", k=1)["record"]
    assert record["excluded_parameters"] == ["0.*"]
    assert record["directions"] == 18
