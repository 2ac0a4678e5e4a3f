"""Where the answer is known in closed form: ridge regression, and the dense Gauss-Newton matrix."""

import numpy as np
import pytest
import torch
from torch import nn

from streamfluence.capture import Capture, dense_gradient
from streamfluence.job import Curvature
from streamfluence.likelihoods.categorical import Categorical
from streamfluence.likelihoods.gaussian import Gaussian
from streamfluence.linalg import sign_block
from streamfluence.linearised import Linearised
from streamfluence.registry import member
from streamfluence.sketching.damping import EARLY_STOPPING, resolve


def flat_rows(capture, uses):
    """Per-example gradients of all blocks side by side, float64, as the projection identity lays them."""
    pieces = [dense_gradient(block, uses[block.name]).flatten(1) for block in capture.blocks]
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("damping", [1e-3, 0.01, 1.0])
def test_ridge_scores_over_one_minus_the_leverage_are_the_exact_leave_one_out_changes(damping):
    """J = (1/n) sum (y - x w)^2 / 2 + damping/2 |w|^2; the query measures the prediction, linear in w."""
    generator = np.random.default_rng(0)
    n, width = 60, 8
    x = generator.normal(size=(n, width))
    y = x @ generator.normal(size=width) + 0.5 * generator.normal(size=n)
    queries = generator.normal(size=(9, width))

    def solve(keep):
        gram = x[keep].T @ x[keep] / n + damping * np.eye(width)
        return np.linalg.solve(gram, x[keep].T @ y[keep] / n)

    weights = solve(np.arange(n))
    model = nn.Linear(width, 1, bias=False).double().eval()
    model.weight.data[:] = torch.from_numpy(weights)
    forward = lambda net, batch: (net(batch["x"]), batch["y"])  # noqa: E731
    batch = {"x": torch.from_numpy(x), "y": torch.from_numpy(y[:, None])}
    likelihood, capture = Gaussian(), Capture(model, forward, batch)

    with capture.record(batch) as tape:
        outputs, targets = tape.returned
        curvature = flat_rows(
            capture, tape.gradients(outputs, likelihood.column(outputs, targets, 0))
        )
        loss = likelihood.loss(outputs, targets)
        rows = flat_rows(capture, tape.gradients(loss, torch.ones_like(loss), last=True))
    query_batch = {"x": torch.from_numpy(queries), "y": torch.zeros(9, 1).double()}
    with capture.record(query_batch) as tape:
        prediction = tape.returned[0]
        query_rows = flat_rows(capture, tape.gradients(prediction, torch.ones_like(prediction)))

    newton = member("curvature", "gauss_newton")()
    state = newton.update(newton.empty([width]), curvature)
    factor = newton.factor(state, n, damping)
    scores = (factor.whiten(query_rows) @ factor.whiten(rows).T / n).numpy().T
    leverage = (factor.whiten(curvature) ** 2).sum(1).numpy() / n
    corrected = scores / (1 - leverage[:, None])
    for i in range(n):
        change = queries @ (solve(np.delete(np.arange(n), i)) - weights)
        np.testing.assert_allclose(corrected[i], change, rtol=1e-8, atol=1e-12)


class Sequence(nn.Module):
    """Embedding, tanh, a linear layer over positions: several positions an example."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 5)

    def forward(self, tokens):
        return self.head(torch.tanh(self.mix(self.embed(tokens))).cumsum(1))


def dense_gauss_newton(model, tokens, targets, likelihood):
    """(1/n) sum J^T S J with J by one backward an output and S by autograd, in float64."""
    parameters, total = list(model.parameters()), 0
    for i in range(len(tokens)):
        logits = model(tokens[i : i + 1])
        rows = [
            torch.cat(
                [
                    torch.zeros_like(p).flatten() if g is None else g.flatten()
                    for p, g in zip(
                        parameters,
                        torch.autograd.grad(c, parameters, retain_graph=True, allow_unused=True),
                        strict=True,
                    )
                ]
            )
            for c in logits.flatten()
        ]
        jacobian = torch.stack(rows)
        hessian = torch.autograd.functional.hessian(
            lambda flat, i=i, logits=logits: likelihood.loss(
                flat.view(1, *logits.shape[1:]), targets[i : i + 1]
            ).sum(),
            logits.detach().flatten(),
        )
        total = total + jacobian.T @ hessian @ jacobian
    return total / len(tokens)


def in_parameter_order(capture, model, rows):
    """Reorder flat rows (weight and bias interleaved by block) to the order of model.parameters()."""
    names = [name for name, _ in model.named_parameters()]
    places, start = {}, 0
    for block in capture.blocks:
        grid = torch.arange(start, start + block.size).view(block.left, block.right)
        start += block.size
        shapes = {name: dict(model.named_parameters())[name].shape for name in block.parameters}
        for name in block.parameters:
            is_bias = len(shapes[name]) == 1
            places[name] = grid[:, -1] if is_bias else grid[:, : shapes[name][1]]
    return rows[:, torch.cat([places[name].flatten() for name in names])]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_exact_columns_give_the_dense_gauss_newton_matrix_of_a_sequence_model(reduction):
    torch.manual_seed(0)
    model, likelihood = Sequence().double().eval(), Categorical(reduction)
    tokens, targets = torch.randint(0, 7, (6, 3)), torch.randint(0, 5, (6, 3))
    targets[0, 1] = -100
    forward = lambda net, batch: (net(batch["t"]), batch["y"])  # noqa: E731
    batch = {"t": tokens, "y": targets}
    capture = Capture(model, forward, batch)
    newton, state = member("curvature", "gauss_newton")(), None
    with capture.record(batch) as tape:
        outputs, _ = tape.returned
        for column in range(likelihood.n_columns(outputs)):
            uses = tape.gradients(outputs, likelihood.column(outputs, targets, column))
            rows = in_parameter_order(capture, model, flat_rows(capture, uses))
            state = newton.update(state or newton.empty([rows.shape[1]]), rows)
    expected = dense_gauss_newton(model, tokens, targets, likelihood)
    torch.testing.assert_close(state["gram/0"] / len(tokens), expected, atol=1e-12, rtol=1e-8)


def test_probes_average_to_the_dense_gauss_newton_matrix():
    torch.manual_seed(0)
    model, likelihood = Sequence().double().eval(), Categorical("mean")
    tokens, targets = torch.randint(0, 7, (6, 3)), torch.randint(0, 5, (6, 3))
    forward = lambda net, batch: (net(batch["t"]), batch["y"])  # noqa: E731
    batch = {"t": tokens, "y": targets}
    capture, ids = Capture(model, forward, batch), torch.arange(6)
    newton, state, probes = member("curvature", "gauss_newton")(), None, 600
    with capture.record(batch) as tape:
        outputs, _ = tape.returned
        for number in range(probes):
            cotangent = likelihood.probe(outputs, targets, 3, number, ids)
            uses = tape.gradients(outputs, cotangent)
            rows = in_parameter_order(capture, model, flat_rows(capture, uses))
            state = newton.update(state or newton.empty([rows.shape[1]]), rows, 1 / probes)
    expected = dense_gauss_newton(model, tokens, targets, likelihood)
    error = torch.linalg.norm(state["gram/0"] / len(tokens) - expected) / torch.linalg.norm(
        expected
    )
    assert error < 0.1


def test_one_example_that_is_squeezed_is_linearised_like_one_of_many():
    torch.manual_seed(0)
    net, x, y = nn.Linear(4, 3).double().eval(), torch.randn(5, 4).double(), torch.arange(5) % 3

    def forward(model, batch):
        return model(batch["x"].squeeze()).squeeze(), batch["y"].squeeze()

    def loss(returned):
        return Categorical().loss(*returned)

    linear = Linearised(net, forward, loss, ["weight", "bias"])
    vectors, parts = torch.randn(2, 15).double(), [{"x": x[[i]], "y": y[[i]]} for i in range(5)]
    whole = {"x": x, "y": y}
    torch.testing.assert_close(
        torch.cat([linear.gradients(part, loss) for part in parts]), linear.gradients(whole, loss)
    )
    torch.testing.assert_close(
        torch.cat([linear.slopes(part, vectors) for part in parts], 1),
        linear.slopes(whole, vectors),
    )
    torch.testing.assert_close(
        sum(linear.products(part, vectors) for part in parts), linear.products(whole, vectors)
    )


def test_probe_signs_are_fair_and_independent():
    drawn = sign_block(0, torch.arange(400), 130, 1)
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    assert abs(drawn.mean()) < 0.02
    correlations = drawn.T @ drawn / 400 - torch.eye(130)
    assert correlations.abs().max() < 0.3


def test_stopping_early_is_the_penalty_that_shrinks_most_like_it():
    # Gradient flow of time 1 against ridge, over 20 decades of curvature; the minimum by a grid.
    x = np.geomspace(1e-10, 1e10, 20_001)
    grid = np.arange(0.4, 0.9, 0.01)
    errors = [np.sum((1 - np.exp(-x) - x / (x + c)) ** 2) for c in grid]
    assert grid[np.argmin(errors)] == pytest.approx(EARLY_STOPPING["layer"], abs=0.006)
    told = Curvature(blocks="layer", weight_decay=1e-3, learning_rate=0.1, steps=50, momentum=0.5)
    damping, rule = resolve(told, "gauss_newton", member("curvature", "gauss_newton")())
    assert damping == pytest.approx(1e-3 + 0.61 * 0.5 / 5)
    assert rule == "weight decay 0.001 + early stopping 0.061"
