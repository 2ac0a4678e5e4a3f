"""The fidelity benchmark's own arithmetic against torch's optimiser and one backward per example."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")
sys.path.insert(0, str(Path(__file__).parents[1] / "tools" / "bench"))

import fidelity_reference as reference
import fidelity_truth as truth


@pytest.fixture(scope="module")
def data():
    return truth.digits()


@pytest.fixture(scope="module")
def stored():
    return truth.load()


@pytest.fixture(scope="module")
def net(data, stored):
    few = truth.Digits(data.train_x[:4], data.train_y[:4], data.query_x[:5], data.query_y[:5])
    return reference.Net(stored.weights[0], few)


def module_of(flat):
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(flat.dtype)
    nn.utils.vector_to_parameters(flat.clone(), model.parameters())
    return model


def gradient_of(model, value):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))])


def test_stacked_training_equals_torch_adam_one_net_at_a_time(data):
    recipe = truth.Recipe(epochs=2, batch_size=40)
    members = np.stack([np.arange(0, 100), np.arange(50, 150)])
    together = truth.train(data, members, [3, 4], recipe)
    for number, seed in enumerate((3, 4)):
        generator = torch.Generator().manual_seed(seed)
        model = module_of(truth._initial(generator))
        adam = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, weight_decay=1e-3)
        for _ in range(recipe.epochs):
            order = torch.from_numpy(members[number])[torch.randperm(100, generator=generator)]
            for rows in order.split(40):
                adam.zero_grad()
                outputs = model(data.train_x[rows])
                nn.functional.cross_entropy(outputs, data.train_y[rows]).backward()
                adam.step()
        alone = nn.utils.parameters_to_vector(model.parameters()).detach()
        torch.testing.assert_close(together[number], alone, rtol=0, atol=2e-5)


def test_the_stored_truth_is_what_its_recipe_makes(data, stored):
    recipe = truth.Recipe(**stored.recipe)
    expected_masks = truth.half_subsets(1437, recipe.n_subsets, recipe.subset_seed)
    np.testing.assert_array_equal(stored.masks, expected_masks)
    assert (stored.masks.sum(1) == 718).all()
    nets = truth.train_subsets(data, stored.masks[:2], recipe.seeds[0], recipe)
    again = truth.query_losses(nets, data).log()
    before = torch.from_numpy(stored.seed_losses[0, :2]).clamp_min(1e-7).log()
    # Rounding grows over 1,200 steps, and the file keeps float16: equal as nets, not as bits.
    assert np.corrcoef(again.flatten(), before.flatten())[0, 1] > 0.99


def test_the_stored_mean_is_the_mean_of_the_seeds(stored):
    np.testing.assert_allclose(stored.losses, stored.seed_losses.mean(0), rtol=2e-3, atol=1e-6)


def test_the_judged_nets_are_trained_on_everything_and_reach_the_stated_accuracy(data, stored):
    found = truth.accuracy(stored.weights, data)
    torch.testing.assert_close(found, torch.tensor(stored.facts["model_accuracy"]))
    assert found.min() > 0.96


def test_reference_gradients_equal_one_backward_per_example(net):
    model = module_of(net.weights)
    for row in range(len(net.train)):
        outputs = model(net.data.train_x[row : row + 1].double())
        loss = nn.functional.cross_entropy(outputs, net.data.train_y[row : row + 1])
        torch.testing.assert_close(net.train[row], gradient_of(model, loss), rtol=1e-9, atol=1e-12)


def test_reference_gauss_newton_equals_the_dense_formula(net):
    model, total = module_of(net.weights), 0
    for x in net.data.train_x.double():
        outputs = model(x)
        columns = [
            torch.autograd.grad(o, list(model.parameters()), retain_graph=True) for o in outputs
        ]
        jacobian = torch.stack([torch.cat([g.flatten() for g in column]) for column in columns])
        p = outputs.softmax(0).detach()
        total = total + jacobian.T @ (p.diag() - torch.outer(p, p)) @ jacobian
    torch.testing.assert_close(net.gauss_newton, total / 4, rtol=1e-8, atol=1e-12)


@pytest.fixture
def small(monkeypatch):
    """Stand-in for a net of 12 weights in two layers, with a random curvature."""
    monkeypatch.setattr(reference, "LAYERS", (slice(0, 7), slice(7, None)))
    generator = torch.Generator().manual_seed(0)
    train, queries, root = (
        torch.randn(n, 12, generator=generator, dtype=torch.float64) for n in (9, 4, 20)
    )
    return SimpleNamespace(train=train, queries=queries, count=9), root.T @ root / 20


def test_reference_scores_solve_the_damped_system(small):
    net, curvature = small
    inverse = torch.linalg.inv(curvature + 0.1 * torch.eye(12, dtype=torch.float64))
    scores = reference.damped(net, curvature, 0.1, by_layer=False)
    torch.testing.assert_close(scores, net.train @ inverse @ net.queries.T / 9)


def test_reference_scores_by_layer_ignore_what_couples_the_layers(small):
    net, curvature = small
    blocks = curvature.clone()
    blocks[:7, 7:], blocks[7:, :7] = 0, 0
    by_layer = reference.damped(net, curvature, 0.1, by_layer=True)
    torch.testing.assert_close(by_layer, reference.damped(net, blocks, 0.1, by_layer=False))
    assert not torch.allclose(by_layer, reference.damped(net, curvature, 0.1, by_layer=False))


def test_ek_fac_of_one_example_is_exact_in_the_last_layer(data, stored):
    # One example: its last layer's Gauss-Newton is (p - p p^T) kron (a a^T), a Kronecker product.
    one = truth.Digits(data.train_x[:1], data.train_y[:1], data.query_x[:3], data.query_y[:3])
    net, last = reference.Net(stored.weights[0], one), reference.LAYERS[1]
    left, right, values = net.kronecker[1]
    assert values.sum() == pytest.approx(float(net.gauss_newton[last, last].trace()), rel=1e-9)
    order = reference._bias_last(10, 64)
    basis = torch.kron(left, right)
    rebuilt = basis @ values.flatten().diag() @ basis.T
    expected = net.gauss_newton[last, last][order][:, order]
    torch.testing.assert_close(rebuilt, expected, rtol=1e-7, atol=1e-12)


def test_reference_margin_is_the_log_odds_of_the_label(net):
    model = module_of(net.weights)
    for row in range(3):
        p = model(net.data.train_x[row].double()).softmax(0)[net.data.train_y[row]]
        expected = gradient_of(model, p.log() - (1 - p).log())
        torch.testing.assert_close(net.margins[row], expected, rtol=1e-5, atol=1e-8)
