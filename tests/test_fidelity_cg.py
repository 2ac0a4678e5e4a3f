"""The benchmark's exact scores by conjugate gradients against its dense ones, and matrices that are known."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
sys.path.insert(0, str(Path(__file__).parents[1] / "tools" / "bench"))

import fidelity_cg as cg
import fidelity_reference as reference
import fidelity_truth as truth
from cases import load_case
from cases.base import Split


@pytest.fixture(params=["b", "d"])  # categorical and gaussian
def problem(request):
    """Return case, weights in float64 and 20 examples with 3 queries of it."""
    case = load_case(request.param)
    data, flat = case.data(), truth.load(case.truth_path).weights[0].double()
    train = {name: values[:20] for name, values in data.train.items()}
    return case, flat, Split(train, {name: values[:3] for name, values in data.queries.items()})


def test_scores_by_conjugate_gradients_equal_dense_ones(problem):
    case, flat, split = problem
    net = cg.Linearised(case, flat, split, batch=7, at_once=2)
    near = cg.Nystrom.of(net.products, len(flat), 30, torch.float64)
    found = cg.solve(net.damped(0.01), net.query_gradients(), near.inverse(0.01), 1e-10)
    dense = reference.Net(case, flat, split)
    expected = reference.damped(dense, dense.gauss_newton_joint, 0.01)
    assert found.residual < 1e-9
    torch.testing.assert_close(
        net.removal_effects(found.solution), expected, rtol=1e-6, atol=1e-9 * expected.abs().max()
    )


def matrix(eigenvalues):
    basis = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues)).double()).Q
    return basis @ torch.diag(eigenvalues.double()) @ basis.T


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_preconditioner_of_full_rank_is_the_inverse(dtype):
    torch.manual_seed(0)
    known = matrix(torch.logspace(1, -4, 40)).to(dtype)
    near = cg.Nystrom.of(lambda v: v @ known, 40, 40, dtype)
    right = torch.randn(3, 40, dtype=dtype)
    inverse = torch.linalg.inv(known.double() + 1e-2 * torch.eye(40).double()).to(dtype)
    expected = right @ inverse * (near.values[-1] + 1e-2)
    torch.testing.assert_close(near.inverse(1e-2)(right), expected, rtol=1e-3, atol=1e-4)


def test_the_preconditioner_saves_steps_and_the_residual_is_true():
    torch.manual_seed(0)
    known = matrix(torch.logspace(2, -6, 200))
    right = torch.randn(4, 200).double()

    def product(v):
        return v @ known + 1e-3 * v

    near = cg.Nystrom.of(lambda v: v @ known, 200, 100, torch.float64)
    plain = cg.solve(product, right, lambda v: v, 1e-6)
    helped = cg.solve(product, right, near.inverse(1e-3), 1e-6)
    assert helped.steps < plain.steps / 4
    left = (right - product(helped.solution)).norm(dim=1) / right.norm(dim=1)
    assert helped.residual == pytest.approx(left.max().item(), rel=1e-3)
    assert helped.residual < 2e-6


def test_a_query_without_gradient_has_the_solution_zero():
    right = torch.stack([torch.zeros(5), torch.ones(5)]).double()
    found = cg.solve(lambda v: 2 * v, right, lambda v: v, 1e-8)
    np.testing.assert_allclose(found.solution, right / 2)
    assert found.residual < 1e-8
