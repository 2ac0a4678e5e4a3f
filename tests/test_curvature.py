"""Laws of every curvature, and the dense formulas they must equal."""

import numpy as np
import pytest
import torch

from streamfluence.errors import InputError
from streamfluence.registry import member, names

WIDTHS = [5, 1, 4]


def random_rows(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, sum(WIDTHS), generator=generator, dtype=torch.float64)


def sketch(name, rows, damping):
    curvature = member("curvature", name)()
    state = curvature.update(curvature.empty(WIDTHS), rows)
    return curvature, state, curvature.factor(state, len(rows), damping)


def dense_matrix(name, rows, damping):
    """The damped matrix, written as loops over examples and blocks."""
    if name == "identity":
        return np.eye(rows.shape[1])
    if name == "diagonal":
        squares = sum(row**2 for row in rows.numpy()) / len(rows)
        return np.diag(squares) + damping * np.eye(rows.shape[1])
    matrix, start = np.zeros((rows.shape[1],) * 2), 0
    for width in WIDTHS:
        span = slice(start, start + width)
        for row in rows.numpy():
            matrix[span, span] += np.outer(row[span], row[span]) / len(rows)
        start += width
    return matrix + damping * np.eye(rows.shape[1])


@pytest.mark.parametrize("name", names("curvature"))
@pytest.mark.parametrize("cut", [0, 1, 50, 103])
def test_merge_of_parts_equals_the_whole(name, cut):
    rows, curvature = random_rows(103), member("curvature", name)()
    parts = (curvature.update(curvature.empty(WIDTHS), part) for part in (rows[:cut], rows[cut:]))
    whole = curvature.update(curvature.empty(WIDTHS), rows)
    torch.testing.assert_close(curvature.merge(*parts), whole)


@pytest.mark.parametrize("name", names("curvature"))
def test_a_state_that_comes_back_in_the_order_of_its_names_is_the_same_state(name):
    # As a store lists it, where block 10 is before block 2.
    widths = [2 + number % 3 for number in range(12)]
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, sum(widths), generator=generator, dtype=torch.float64)
    curvature = member("curvature", name)()
    state = curvature.update(curvature.empty(widths), rows)
    back = {key: state[key] for key in sorted(state)}
    solved = curvature.factor(state, 40, 0.1, [100 * width for width in widths]).solve(rows)
    found = curvature.factor(back, 40, 0.1, [100 * width for width in widths])
    torch.testing.assert_close(found.solve(rows), solved)
    stored = dict(sorted(found.state().items()))
    again = type(found).from_state(stored)
    torch.testing.assert_close(again.solve(rows), solved)
    torch.testing.assert_close(curvature.merge(back, back), curvature.merge(state, state))


@pytest.mark.parametrize("name", names("curvature"))
@pytest.mark.parametrize("count", [3, 200])
def test_solve_equals_the_dense_inverse(name, count):
    rows = random_rows(count)
    _, _, factor = sketch(name, rows, 0.3)
    expected = random_rows(7, seed=1).numpy() @ np.linalg.inv(dense_matrix(name, rows, 0.3))
    np.testing.assert_allclose(
        factor.solve(random_rows(7, seed=1)), expected, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("name", ["gauss_newton", "fisher", "diagonal"])
def test_default_damping_is_relative_to_the_mean_eigenvalue_of_each_block(name):
    rows = random_rows(80) * torch.tensor([1.0] * 5 + [100.0] + [0.01] * 4, dtype=torch.float64)
    curvature, _, factor = sketch(name, rows, None)
    start = 0
    for width in WIDTHS:
        block = rows[:, start : start + width]
        mean = float((block**2).sum() / len(rows) / width)
        expected = torch.full((width,), curvature.default_scale * mean, dtype=torch.float64)
        torch.testing.assert_close(factor.damping[start : start + width], expected)
        start += width


@pytest.mark.parametrize("name", ["gauss_newton", "fisher", "diagonal"])
def test_energies_are_the_second_moments_of_whitened_curvature_rows(name):
    rows = random_rows(60)
    curvature, state, factor = sketch(name, rows, 0.2)
    measured = (factor.whiten(rows) ** 2).mean(0)
    torch.testing.assert_close(curvature.energies(state, factor, 60), measured)


def test_without_curvature_energies_are_the_second_moments_of_the_rows():
    rows = random_rows(60)
    curvature, state, factor = sketch("identity", rows, None)
    torch.testing.assert_close(curvature.energies(state, factor, 60), (rows**2).mean(0))
    torch.testing.assert_close(factor.whiten(rows), rows)


def test_effective_dimension_counts_directions_above_the_damping():
    rows = torch.diag(torch.tensor([10.0] * 5 + [1e-6] + [1e-6] * 4, dtype=torch.float64))
    _, _, factor = sketch("gauss_newton", rows, 0.01)
    first, second, third = factor.effective_dimension()
    assert first == pytest.approx(5 * 10 / (10 + 0.01))
    assert second < 1e-6 and third < 1e-6


@pytest.mark.parametrize("name", ["gauss_newton", "fisher", "diagonal"])
def test_a_block_without_any_gradient_has_no_relative_damping(name):
    rows = torch.zeros(10, sum(WIDTHS))
    with pytest.raises(InputError, match="set curvature"):
        sketch(name, rows, None)


def test_a_source_that_is_none_is_refused():
    with pytest.raises(InputError, match="'probes' or 'loss'"):
        member("curvature", "diagonal")(source="labels")


@pytest.mark.parametrize("name", names("curvature"))
def test_a_weight_counts_rows_that_many_times(name):
    rows, curvature = random_rows(20), member("curvature", name)()
    light, once = (curvature.update(curvature.empty(WIDTHS), rows, w) for w in (0.25, 1.0))
    for key in once:
        torch.testing.assert_close(light[key], 0.25 * once[key])


@pytest.fixture(scope="module")
def half_whitened():
    """A preconditioner half-whitened for other rows, those rows, and the energies of its coordinates."""
    _, _, factor = sketch("gauss_newton", random_rows(50), 0.2)
    other = random_rows(30, seed=5) * torch.linspace(0.1, 3, sum(WIDTHS), dtype=torch.float64)
    found, energies = factor.half_whitened(
        [part.T @ part / 30 for part in other.split(WIDTHS, dim=1)]
    )
    return found, other, energies


def test_stored_coordinates_of_a_block_are_uncoupled_and_their_energies_measured(half_whitened):
    found, other, energies = half_whitened
    stored = found.for_rows(found.whiten(other))
    for part, known in zip(stored.split(WIDTHS, 1), energies.split(WIDTHS), strict=True):
        moment = part.T @ part / len(other)
        torch.testing.assert_close(moment, known.square().diag(), atol=1e-10, rtol=0.0)
        assert (known.diff() <= 1e-12).all()


def test_no_linear_map_to_fewer_coordinates_keeps_more_of_the_products(half_whitened):
    """What first coordinates leave out is the tail of singular values of query root times row root."""
    found, other, _ = half_whitened
    whitened, width = found.whiten(other)[:, : WIDTHS[0]].numpy(), WIDTHS[0]
    values, damping = found.values[:width].numpy(), found.damping[:width].numpy()
    query_root = np.diag(np.sqrt((values + 0.1 * damping) / (values + damping)))
    best = np.linalg.svd(query_root @ whitened.T / len(other) ** 0.5, compute_uv=False)
    stored = found.for_rows(found.whiten(other)).numpy()
    # Queries of that energy, one a direction: their products with rows, from the first coordinates.
    queries = torch.zeros(width, sum(WIDTHS), dtype=torch.float64)
    queries[:, :width] = torch.from_numpy(query_root)
    asked = found.for_queries(queries).numpy()
    for kept in range(1, width):
        error = asked[:, kept:width] @ stored[:, kept:width].T
        lost = (error**2).sum() / len(other)
        assert lost == pytest.approx((best[kept:] ** 2).sum(), rel=1e-9)
