"""The laws of every solver, against dense float64 algebra."""

import pytest
import torch

from streamfluence.errors import InputError
from streamfluence.options import make
from streamfluence.registry import member, names

SOLVERS = names("solvers")


def matrix_of(size=12, seed=0, smallest=0.0):
    """Return a symmetric matrix with eigenvalues from ``smallest`` to 3."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    return basis @ torch.diag(torch.linspace(smallest, 3, size, dtype=torch.float64)) @ basis.T


def right_of(count, size=12):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("by_weight", [False, True])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_solution_is_that_of_the_dense_matrix(name, by_weight):
    matrix, right = matrix_of(), right_of(4)
    damping = torch.linspace(0.1, 0.4, 12, dtype=torch.float64) if by_weight else 0.1
    found = make("solvers", name, {"tolerance": 1e-10}).solve(lambda v: v @ matrix, right, damping)
    damped = matrix + torch.diag(torch.as_tensor(damping).expand(12).double())
    assert found.converged and found.residual <= 1e-10
    torch.testing.assert_close(found.solution, torch.linalg.solve(damped, right.T).T)


@pytest.mark.parametrize("name", SOLVERS)
def test_several_right_sides_at_once_are_what_they_are_alone(name):
    """Of which one is an eigenvector, solved long before the others."""
    matrix, right = matrix_of(), right_of(4) * torch.tensor([1e-6, 1, 0, 1e6]).double()[:, None]
    right[1] = torch.linalg.eigh(matrix)[1][:, 5] + 1e-5 * right[1]
    solver = make("solvers", name, {"tolerance": 1e-4})
    together = solver.solve(lambda v: v @ matrix, right, 0.1)
    for row, solution in zip(right, together.solution, strict=True):
        alone = solver.solve(lambda v: v @ matrix, row[None], 0.1)
        torch.testing.assert_close(solution, alone.solution[0], rtol=1e-9, atol=0)
        assert alone.residual <= together.residual * (1 + 1e-9)
    assert not together.solution[2].any(), "of a row of zeros"


@pytest.mark.parametrize("steps", [1, 3, 500])
@pytest.mark.parametrize("name", SOLVERS)
def test_the_residual_is_that_of_what_is_returned(name, steps):
    """In float32, where what is carried along from step to step is smaller than what is so."""
    matrix, right = matrix_of().float(), right_of(3).float()
    found = make("solvers", name, {"tolerance": 1e-9, "steps": steps}).solve(
        lambda v: v @ matrix, right, 1e-3
    )
    left = right - found.solution @ (matrix + 1e-3 * torch.eye(12))
    worst = (left.norm(dim=1) / right.norm(dim=1)).max()
    assert found.residual == pytest.approx(float(worst), rel=0.05)
    assert not found.converged and found.residual > 1e-9


@pytest.mark.parametrize("name", SOLVERS)
def test_every_product_is_counted(name):
    matrix, calls = matrix_of(), []

    def product(vectors):
        calls.append(len(vectors))
        return vectors @ matrix

    found = member("solvers", name)().solve(product, right_of(2), 0.1)
    assert found.steps == len(calls) > 1


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("smallest", [-0.5, -5.0])
def test_a_matrix_that_is_not_positive_is_refused(name, smallest):
    matrix = matrix_of(smallest=smallest)
    with pytest.raises(InputError, match="not positive"):
        member("solvers", name)().solve(lambda v: v @ matrix, right_of(4), 0.01)


@pytest.mark.parametrize("name", SOLVERS)
def test_products_that_are_no_numbers_are_refused(name):
    with pytest.raises(InputError, match="not positive"):
        member("solvers", name)().solve(lambda v: v * float("nan"), right_of(4), 0.01)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("options", [{"tolerance": 0.0}, {"tolerance": 1.0}, {"steps": 0}])
def test_options_that_nothing_is_solved_by_are_refused(name, options):
    with pytest.raises(InputError, match="it must be"):
        make("solvers", name, options)


def test_a_series_that_diverges_is_refused():
    """Eigenvalues above what power iteration saw: a product whose matrix grows once the steps begin."""
    matrix, calls = matrix_of(), []

    def product(vectors):
        calls.append(1)
        return vectors @ matrix * (1 if len(calls) <= 20 else 10)

    with pytest.raises(InputError, match="diverges"):
        member("solvers", "lissa")().solve(product, right_of(1), 0.01)


def test_lissa_stopped_early_is_damped_more():
    """In the eigenbasis J steps of length a leave ``1 - (1 - a (s + damping))^J`` of the solution."""
    matrix, right = matrix_of(), right_of(2)
    values, basis = torch.linalg.eigh(matrix)
    found = make("solvers", "lissa", {"steps": 30}).solve(lambda v: v @ matrix, right, 0.1)
    rate = (found.solution @ basis)[:, -1] / (right @ basis)[:, -1]  # one step solves the largest
    left = (1 - rate[:, None] * (values + 0.1)).clamp(0, 1) ** 10
    wanted = (right @ basis) * (1 - left) / (values + 0.1)
    torch.testing.assert_close(found.solution @ basis, wanted, rtol=0.02, atol=1e-3)
