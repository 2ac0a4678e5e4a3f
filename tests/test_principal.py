"""The principal projection against spans found from dense gradients, in float64."""

import numpy as np
import pytest
import torch
from small_job import write_job
from test_projections import BLOCKS, fitted, flat, random_uses
from test_spectral import EXACT, coloured, pair_bases

from streamfluence.errors import InputError
from streamfluence.projections._components import components, orthonormal
from streamfluence.registry import member
from streamfluence.run.opened import OpenRun
from streamfluence.run.states import load_state
from streamfluence.stages.run import run

N = 30
PAIRED = [block for block in BLOCKS if block.name in ("linear", "conv", "twice")]


def decaying(rows, coordinates, power, seed=0):
    """Return Gaussian rows, float64, with a spectrum of k^-power."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(coordinates, coordinates, generator=generator, dtype=torch.float64)
    scale = torch.arange(1, coordinates + 1).double().pow(-power / 2)
    turned = torch.linalg.qr(mix)[0] * scale
    return torch.randn(rows, coordinates, generator=generator, dtype=torch.float64) @ turned.T


def test_components_are_eigenvectors_of_the_second_moment():
    rows = decaying(50, 70, 1.0).float()
    basis, kept, beyond = components(rows, 6)
    values, vectors = np.linalg.eigh((rows.double().T @ rows.double()).numpy())
    assert kept == pytest.approx(values[::-1][:6].sum() / values.sum(), rel=1e-9)
    half = torch.linalg.svd(rows[::2].double())[2][:6].T
    held = (rows[1::2].double() @ half).square().sum() / rows[1::2].double().square().sum()
    assert beyond == pytest.approx(float(held), rel=1e-6) and beyond < kept
    overlap = np.abs(vectors[:, ::-1][:, :6].T @ basis.numpy())
    np.testing.assert_allclose(overlap, np.eye(6), atol=1e-7)


def test_rows_that_span_less_than_was_asked_for_give_their_span():
    rows = decaying(9, 200, 0.5).float()
    basis, kept, _ = components(torch.cat([rows, rows[:4]]), 20)
    assert basis.shape == (200, 9) and kept == pytest.approx(1)
    torch.testing.assert_close(basis.T @ basis, torch.eye(9).double(), rtol=0, atol=1e-9)
    rows = rows.double()
    torch.testing.assert_close(rows @ basis @ basis.T, rows, rtol=0, atol=1e-5)


def test_orthonormal_columns_span_what_was_given_however_badly_it_is_scaled():
    columns = decaying(40, 6, 0.0).clone() * torch.logspace(0, -5, 6)
    found = orthonormal(columns.clone())
    torch.testing.assert_close(found.T @ found, torch.eye(6).double(), rtol=0, atol=1e-8)
    expected = torch.linalg.qr(columns)[0]
    torch.testing.assert_close(found @ found.T, expected @ expected.T, rtol=0, atol=1e-4)


def whitener(uses, damping=0.0):
    """Return h^(1/2) / (h + floor) as a matrix over all weights, from loops over dense gradients."""
    pieces = []
    mean = sum(flat_of(block, uses).square().sum(1).mean() for block in PAIRED)
    least = damping / 16 - mean / sum(block.size for block in PAIRED) / 2
    for block in PAIRED:
        rows = flat_of(block, uses)
        basis = pair_bases(block, uses[block.name])
        h = (rows @ basis).square().mean(0)
        floor = torch.maximum(0.1 * h.sum() / block.size, least)
        pieces.append(basis * (h.sqrt() / (h + floor)) @ basis.T)
    return torch.block_diag(*pieces)


def flat_of(block, uses):
    whole = flat(uses | {b.name: uses.get(b.name, ZERO[b.name]) for b in BLOCKS})
    start = 0
    for one in BLOCKS:
        if one.name == block.name:
            return whole[:, start : start + one.size]
        start += one.size


ZERO = {name: of for name, of in random_uses(N, 0).items()}


def chosen(seed):
    uses = coloured(random_uses(N, seed), seed=seed)
    return {block.name: uses[block.name] for block in PAIRED}


@pytest.mark.parametrize(
    "width, damping", [(4, 0.0), (12, 30.0), (12, 800.0), (12, 2000.0), (N, 0.0)]
)
def test_features_are_coordinates_in_the_span_of_whitened_principal_components(width, damping):
    probes, rows, others = chosen(1), chosen(2), chosen(3)
    projection = member("projections", "principal")(
        PAIRED, width, 0, candidates_per_feature=50, **EXACT
    )
    fitted(projection, probes, rows, N, damping)
    white = whitener(probes, damping)
    gradients, sample = (
        torch.cat([flat_of(block, uses) for block in PAIRED], 1) for uses in (rows, others)
    )
    best = torch.linalg.svd(gradients @ white)[2][:width].T
    span = torch.linalg.qr(white @ best)[0]
    expected = sample @ span @ span.T @ sample.T
    found = projection.apply(others).double()
    torch.testing.assert_close(
        found @ found.T, expected, rtol=1e-3, atol=1e-3 * float(expected.max())
    )
    share = (gradients @ white @ best).square().sum() / (gradients @ white).square().sum()
    assert projection.facts()["kept"] == pytest.approx(float(share), rel=1e-4)


def test_where_there_are_no_more_pairs_than_features_all_are_kept():
    projection = fitted(
        member("projections", "principal")(BLOCKS, 500, 0, **EXACT),
        random_uses(N, 1),
        random_uses(N, 2),
        N,
    )
    uses = random_uses(5, 4)
    found, expected = projection.apply(uses).double(), flat(uses)
    torch.testing.assert_close(found @ found.T, expected @ expected.T, rtol=1e-4, atol=1e-3)


def test_the_third_pass_joins_its_parts():
    projection = member("projections", "principal")(PAIRED, 6, 0, **EXACT)
    probes, rows = chosen(1), chosen(2)
    projection.load(projection.fit(projection.update(projection.empty(), probes, 1.0), N))
    state = projection.refine_update(projection.refine_empty(), probes, 1.0)
    projection.load(projection.refine(projection.refine_rows(state, rows), N))
    whole = projection.refine_rows(projection.refine_empty(), rows)
    parts = [
        projection.refine_rows(
            projection.refine_empty(),
            {
                name: [type(use)(use.left[part], use.right[part]) for use in of]
                for name, of in rows.items()
            },
        )
        for part in (slice(0, 11), slice(11, N))
    ]
    merged = projection.merge(*parts)
    for key, value in whole.items():
        torch.testing.assert_close(
            merged[key], value, rtol=1e-5, atol=1e-5 * float(value.abs().max())
        )


def test_a_sample_without_loss_gradients_is_refused():
    projection = member("projections", "principal")(PAIRED, 6, 0, **EXACT)
    rows = {
        name: [type(use)(0.0 * use.left, use.right) for use in of] for name, of in chosen(2).items()
    }
    with pytest.raises(InputError, match="all zero"):
        fitted(projection, chosen(1), rows, N)


def test_pairs_fill_up_what_few_gradients_do_not_span():
    probes, few = (
        chosen(1),
        {
            name: [type(use)(use.left[:5], use.right[:5]) for use in of]
            for name, of in chosen(2).items()
        },
    )
    projection = member("projections", "principal")(PAIRED, 20, 0, **EXACT)
    fitted(projection, probes, few, N)
    narrow = member("projections", "principal")(PAIRED, 5, 0, candidates_per_feature=50, **EXACT)
    fitted(narrow, probes, few, N)
    others = chosen(3)
    wide, span = projection.apply(others).double(), narrow.apply(others).double()
    assert wide.shape == (N, 20) and span.shape == (N, 5)
    # The five directions of the gradients lie within the twenty.
    joined = torch.cat([wide, span], dim=1)
    assert int(torch.linalg.matrix_rank(joined, rtol=1e-4)) == 20
    assert float(wide.square().sum()) > float(span.square().sum())


@pytest.mark.parametrize(
    "projection, options, expected",
    [
        ("principal", {"rows_per_feature": 1}, {"components_of": 5, "pairs": 53}),
        ("principal", {"entries": 40}, {"components_of": 20, "pairs": 8}),
        ("principal", {"pairs_per_feature": 2}, {"components_of": 20, "pairs": 10}),
        ("spectral", {"candidates_per_feature": 1}, {"energies": "measured"}),
    ],
)
def test_options_hold_in_a_run_whose_parts_may_be_left_without_rows(
    tmp_path, projection, options, expected
):
    write_job(tmp_path)
    changes = {f"projection.options.{key}": value for key, value in options.items()}
    common = {"projection.name": projection, "projection.width": 5, "curvature.blocks": "joint"}
    run(tmp_path / "job.toml", str(tmp_path / "run"), common | changes | {"compute.batch_size": 4})
    plan = load_state(OpenRun.open(str(tmp_path / "run")), "sketch/0/decision", 0)[1]
    facts = plan["projection"]
    assert {key: facts[key] for key in expected} == expected
    assert 0 < facts["kept"] < 1 and plan["directions"] == 5


@pytest.mark.parametrize(
    "options, words",
    [
        ({"rows_per_feature": 2.5}, "rows_per_feature must be a whole number"),
        ({"entries": 0}, "entries must be a whole number"),
    ],
)
def test_options_that_cannot_be_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        member("projections", "principal")(PAIRED, 6, 0, **options)
