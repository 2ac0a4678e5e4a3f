"""Gradients measured and probed, against one backward an example."""

from dataclasses import replace

import pytest
import torch
from per_example import one_backward_an_example
from small_job import load, write_job

from streamfluence.capture import Capture
from streamfluence.errors import CoverageError, InputError
from streamfluence.features.gradient import Gradient
from streamfluence.registry import member
from streamfluence.task import load_task


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    write_job(folder, n=40)
    task = load_task("task.py", folder)
    module, x, y, *_ = load(folder)
    batch = {"x": x[:12], "y": y[:12]}
    capture = Capture(module.eval(), task.forward, batch)
    projection = member("projections", "identity")(capture.blocks, 1, 0)
    return task, module, batch, Gradient(task, capture, projection)


def second_moment(gradient, uses_and_weights):
    """Sum of weight * row row^T over examples and probes, and the sum of weights."""
    total, weights = 0.0, 0.0
    for uses, weight in uses_and_weights:
        rows = gradient.projection.apply(uses).double()
        total, weights = total + weight * rows.T @ rows, weights + weight
    return total, weights


def test_rows_and_values_are_those_of_one_backward_an_example(job):
    task, module, batch, gradient = job
    measured = gradient.measure(batch)
    expected = one_backward_an_example(module, batch, task.forward, task.loss)
    rows = torch.cat(
        [  # a block is the weight with the bias as its last column
            torch.cat([expected[f"{i}.weight"], expected[f"{i}.bias"][..., None]], -1).flatten(1)
            for i in (0, 2)
        ],
        dim=1,
    )
    torch.testing.assert_close(measured.rows.double(), rows, rtol=1e-5, atol=1e-6)
    loss = torch.nn.functional.cross_entropy(module(batch["x"]), batch["y"], reduction="none")
    torch.testing.assert_close(measured.value, loss.float())
    assert gradient.width == rows.shape[1] and measured.rows.dtype == torch.float32


@pytest.mark.parametrize("count", [1, 400])
def test_probes_of_any_number_sum_to_one_gauss_newton_matrix(job, count):
    _, _, batch, gradient = job
    ids = torch.arange(12)
    exact, _ = second_moment(gradient, gradient.probe_uses(batch, ids, 0, lambda columns: None))
    found, weights = second_moment(gradient, gradient.probe_uses(batch, ids, 0, lambda _: count))
    assert weights == pytest.approx(1.0)
    # Probes that were all alike would leave the error of one: .5 to 1.
    tolerance = 2.0 if count == 1 else 0.15
    assert torch.linalg.norm(found - exact) < tolerance * torch.linalg.norm(exact)


def test_the_probes_of_an_example_depend_on_its_number_and_not_on_its_batch(job):
    _, _, batch, gradient = job
    ids = torch.arange(100, 112)

    def rows(part):
        cut = {key: value[part] for key, value in batch.items()}
        return [
            gradient.projection.apply(uses)
            for uses, _ in gradient.probe_uses(cut, ids[part], 5, lambda _: 3)
        ]

    for whole, half in zip(rows(slice(None)), rows(slice(6, 12)), strict=True):
        torch.testing.assert_close(whole[6:], half)


@pytest.fixture
def squeezing(tmp_path):
    """A task, batch and gradient of which a batch of one loses its example axis everywhere."""
    write_job(tmp_path, n=40)
    task = load_task("task.py", tmp_path)
    module, x, y, *_ = load(tmp_path)

    def forward(model, batch):
        return model(batch["x"].squeeze()).squeeze(), batch["y"].squeeze()

    def training_loss(outputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none").squeeze()

    task = replace(task, _forward=forward, _training_loss=training_loss)

    def checked(model, batch):
        returned = task.forward(model, batch)
        task.check(returned, len(batch["x"]))
        return returned

    capture = Capture(module.eval(), checked, {"x": x[:12], "y": y[:12]})
    projection = member("projections", "identity")(capture.blocks, 1, 0)
    return {"x": x[:12], "y": y[:12]}, Gradient(task, capture, projection)


@pytest.mark.parametrize("measurement", ["loss", "margin", "training_loss"])
def test_a_batch_of_one_that_is_squeezed_is_measured_like_a_batch_of_many(squeezing, measurement):
    batch, gradient = squeezing
    whole = gradient.measure(batch, measurement)
    for place in (0, 11):
        one = gradient.measure({key: value[[place]] for key, value in batch.items()}, measurement)
        torch.testing.assert_close(one.rows, whole.rows[[place]])
        torch.testing.assert_close(one.value, whole.value[[place]])


def test_the_vectors_of_a_batch_of_one_that_is_squeezed_are_those_of_a_batch_of_many(squeezing):
    batch, gradient = squeezing
    one, ids = {key: value[[3]] for key, value in batch.items()}, torch.arange(12)
    for of in (
        lambda b, i: gradient.probe_uses(b, i, 0, lambda _: 3),
        lambda b, i: gradient.loss_uses(b),
    ):
        pairs = zip(of(one, ids[[3]]), of(batch, ids), strict=True)
        for (uses, weight), (others, other_weight) in pairs:
            assert weight == other_weight
            rows = gradient.projection.apply(uses)
            torch.testing.assert_close(rows, gradient.projection.apply(others)[[3]])


def test_a_training_loss_whose_gradient_mixes_its_batch_is_refused(job):
    task, _, batch, gradient = job

    def training_loss(outputs, targets):
        loss = torch.nn.functional.cross_entropy(outputs, targets, reduction="none")
        return loss + (loss - loss.detach()) * targets.max()  # the value is the loss alone

    mixing = Gradient(replace(task, _training_loss=training_loss), gradient.capture, None)
    with pytest.raises(CoverageError, match="its gradient at the outputs changes with the others"):
        next(mixing.loss_uses(batch))


def test_a_bare_loss_has_nothing_to_probe(job):
    task, _, batch, gradient = job
    bare = replace(task, likelihood=None, _forward=None, _loss=lambda m, b: m(b["x"]).sum(1))
    with pytest.raises(InputError, match="no output Hessian"):
        next(
            Gradient(bare, gradient.capture, None).probe_uses(
                batch, torch.arange(12), 0, lambda _: 1
            )
        )
