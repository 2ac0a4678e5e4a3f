"""Losses, margins and the square root of the output Hessian, against autograd in float64."""

import pytest
import torch
import torch.nn.functional as F

from streamfluence.errors import InputError
from streamfluence.likelihoods.bernoulli import Bernoulli
from streamfluence.likelihoods.categorical import Categorical
from streamfluence.likelihoods.gaussian import Gaussian
from streamfluence.registry import member, names

LIKELIHOODS = {name: member("likelihoods", name) for name in names("likelihoods")}

SHAPES = [(3, 5), (3, 4, 5), (2, 2, 3, 4)]


def categorical_case(shape, reduction):
    outputs = torch.randn(shape, dtype=torch.float64)
    targets = torch.randint(0, shape[-1], shape[:-1])
    if len(shape) > 2:
        targets[0, 1] = -100
    return Categorical(reduction), outputs, targets


def bernoulli_case(shape, reduction):
    return Bernoulli(reduction), torch.randn(shape, dtype=torch.float64), torch.rand(shape)


def gaussian_case(shape, reduction):
    outputs = torch.randn(shape, dtype=torch.float64)
    return Gaussian(reduction, variance=0.7), outputs, torch.randn(shape, dtype=torch.float64)


CASES = [categorical_case, bernoulli_case, gaussian_case]


def hessian_of_example(likelihood, outputs, targets, example):
    def loss(flat):
        whole = outputs.clone()
        whole[example] = flat.view(outputs.shape[1:])
        return likelihood.loss(whole, targets)[example]

    return torch.autograd.functional.hessian(loss, outputs[example].flatten())


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", CASES)
def test_columns_sum_to_the_output_hessian(case, shape, reduction):
    torch.manual_seed(0)
    likelihood, outputs, targets = case(shape, reduction)
    columns = [
        likelihood.column(outputs, targets, number).flatten(1)
        for number in range(likelihood.n_columns(outputs))
    ]
    for example in range(len(outputs)):
        root = torch.stack([column[example] for column in columns])
        expected = hessian_of_example(likelihood, outputs, targets, example)
        torch.testing.assert_close(root.T @ root, expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_probes_average_to_the_output_hessian(case):
    torch.manual_seed(1)
    likelihood, outputs, targets = case((2, 3, 4), "mean")
    probes = torch.stack(
        [
            likelihood.probe(outputs, targets, 5, r, torch.tensor([7, 9])).flatten(1)
            for r in range(4000)
        ]
    )
    for example in range(2):
        measured = probes[:, example].T @ probes[:, example] / len(probes)
        expected = hessian_of_example(likelihood, outputs, targets, example)
        assert (measured - expected).abs().max() < 0.1 * expected.abs().max()


def test_probes_depend_on_the_example_and_not_on_its_batch():
    outputs, targets = torch.randn(4, 3, 5), torch.randint(0, 5, (4, 3))
    ids = torch.tensor([10, 3, 77, 4])
    likelihood = Categorical()
    together = likelihood.probe(outputs, targets, 0, 2, ids)
    for i in range(4):
        alone = likelihood.probe(outputs[i : i + 1], targets[i : i + 1], 0, 2, ids[i : i + 1])
        assert torch.equal(together[i], alone[0])
    alike = likelihood.probe(outputs[:1].expand(4, 3, 5), targets[:1].expand(4, 3), 0, 2, ids)
    assert len(alike.flatten(1).unique(dim=0)) == 4, "examples share their signs"
    assert not torch.equal(together, likelihood.probe(outputs, targets, 1, 2, ids))
    assert not torch.equal(together, likelihood.probe(outputs, targets, 0, 3, ids))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_categorical_loss_is_cross_entropy_without_the_ignored_positions(reduction):
    likelihood, outputs, targets = categorical_case((3, 6, 5), reduction)
    expected = [F.cross_entropy(outputs[i], targets[i], reduction=reduction) for i in range(3)]
    torch.testing.assert_close(likelihood.loss(outputs, targets), torch.stack(expected))


def test_a_gaussian_of_variance_one_half_is_the_squared_error():
    outputs, targets = torch.randn(4, 3), torch.randn(4, 3)
    loss = Gaussian(variance=0.5).loss(outputs, targets)
    torch.testing.assert_close(loss, ((outputs - targets) ** 2).sum(1))


def test_margins_are_the_log_odds_of_the_target():
    outputs, targets = torch.randn(6, 4, dtype=torch.float64), torch.randint(0, 4, (6,))
    p = outputs.softmax(1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(Categorical().margin(outputs, targets), torch.log(p / (1 - p)))
    y = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    q = torch.where(y == 1, outputs[:2, :1].sigmoid(), 1 - outputs[:2, :1].sigmoid())
    torch.testing.assert_close(Bernoulli().margin(outputs[:2, :1], y), torch.log(q / (1 - q))[:, 0])


@pytest.mark.parametrize(
    ("name", "outputs", "targets", "words"),
    [
        (
            "categorical",
            torch.randn(3, 5),
            torch.zeros(3, 1, dtype=torch.long),
            "without the class axis",
        ),
        ("categorical", torch.randn(3, 5), torch.zeros(3), "class numbers"),
        ("categorical", torch.randn(3, 5), torch.tensor([0, 5, 1]), "5 classes"),
        ("categorical", torch.randn(3, 5), torch.tensor([0, -1, 1]), "ignore_index"),
        ("gaussian", torch.randn(3, 1), torch.randn(3), "broadcasting"),
        ("bernoulli", torch.randn(3), torch.full((3,), 2.0), r"\[0, 1\]"),
    ],
)
def test_outputs_and_targets_that_do_not_fit_are_refused(name, outputs, targets, words):
    with pytest.raises(InputError, match=words):
        LIKELIHOODS[name]().check(outputs, targets)


def test_an_example_with_every_position_ignored_has_zero_loss_and_no_curvature():
    likelihood, outputs = Categorical("mean"), torch.randn(1, 2, 3)
    targets = torch.full((1, 2), -100)
    assert likelihood.loss(outputs, targets).item() == 0
    assert likelihood.probe(outputs, targets, 0, 0, torch.tensor([0])).abs().max() == 0


@pytest.mark.parametrize("counted", [1, 2, 4])
def test_the_mean_is_over_the_positions_that_count_however_few(counted):
    torch.manual_seed(0)
    outputs, targets = torch.randn(3, 4, 5), torch.randint(0, 5, (3, 4))
    targets[:, counted:] = -100
    expected = [
        F.cross_entropy(o, t, reduction="mean") for o, t in zip(outputs, targets, strict=True)
    ]
    torch.testing.assert_close(Categorical("mean").loss(outputs, targets), torch.stack(expected))
    assert Gaussian("mean").loss(torch.full((1, 1), 3.0), torch.zeros(1, 1)).item() == 4.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_half_precision_outputs_are_measured_in_single(case, dtype):
    torch.manual_seed(0)
    likelihood, outputs, targets = case((3, 4, 5), "mean")
    half = outputs.to(dtype)
    found = likelihood.loss(half, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, likelihood.loss(half.float(), targets), rtol=1e-6, atol=0)
    assert likelihood.column(half, targets, 0).dtype == dtype
