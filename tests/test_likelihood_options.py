"""Targets that do not count, soft labels, weights and scalar outputs, against autograd in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamfluence.errors import InputError
from streamfluence.likelihoods.base import Likelihood
from streamfluence.likelihoods.bernoulli import Bernoulli
from streamfluence.likelihoods.categorical import Categorical
from streamfluence.likelihoods.gaussian import Gaussian
from streamfluence.registry import member, names

LIKELIHOODS = {name: member("likelihoods", name) for name in names("likelihoods")}

NAN = float("nan")


def literal_loss(likelihood: Likelihood, outputs: Tensor, targets: Tensor, weights) -> Tensor:
    """The loss of one example, position by position in a Python loop."""
    categorical = isinstance(likelihood, Categorical)
    shape = outputs.shape[:-1] if categorical else outputs.shape
    total, counted = torch.zeros((), dtype=outputs.dtype), 0
    for place in itertools.product(*map(range, shape)):
        target, output = targets[place], outputs[place]
        weight = 1.0 if weights is None else float(weights[place] if weights.dim() else weights)
        if bool(torch.isnan(target).any()) or weight == 0:
            continue
        if target.numel() == 1 and float(target) == likelihood.ignore_index:
            continue
        if categorical and target.is_floating_point():
            loss = -(target * torch.log_softmax(output, 0)).sum()
        elif categorical:
            loss = -torch.log_softmax(output, 0)[int(target)]
        elif isinstance(likelihood, Bernoulli):
            loss = -target * F.logsigmoid(output) - (1 - target) * F.logsigmoid(-output)
        else:
            loss = (output - target) ** 2 / (2 * likelihood.variance)
        total, counted = total + weight * loss, counted + 1
    return total / max(counted, 1) if likelihood.reduction == "mean" else total


@st.composite
def cases(draw):
    """A likelihood, and (outputs, targets, weights) of a few examples with all options mixed."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    name = draw(st.sampled_from([*LIKELIHOODS, "soft"]))
    positions = draw(st.sampled_from([(3,), (3, 4), (2, 2, 3)]))
    reduction = draw(st.sampled_from(["sum", "mean"]))
    outputs = 2 * torch.randn(*positions, *([5] if name in ("categorical", "soft") else []))
    outputs, missing = outputs.double(), torch.rand(positions) < 0.3
    if name == "categorical":
        likelihood = Categorical(reduction, draw(st.sampled_from([-100, 7])))
        targets = torch.randint(0, 5, positions)
        targets[missing] = likelihood.ignore_index
    elif name == "soft":
        likelihood, targets = (
            Categorical(reduction),
            torch.randn(*positions, 5).double().softmax(-1),
        )
        targets[torch.rand(positions) < 0.3] = F.one_hot(torch.tensor(2), 5).double()
        targets[missing] = NAN
    else:
        ignored = draw(st.sampled_from([None, -1.0]))
        kind = Bernoulli if name == "bernoulli" else Gaussian
        likelihood = kind(reduction, ignore_index=ignored)
        targets = torch.rand(positions).double()
        targets[missing] = draw(st.sampled_from([NAN] if ignored is None else [NAN, ignored]))
    weights = draw(st.sampled_from(["none", "example", "position", "mask"]))
    weights = {
        "none": None,
        "example": torch.rand(positions[:1]),
        "position": torch.rand(positions) * (torch.rand(positions) < 0.7),
        "mask": torch.rand(positions) < 0.6,
    }[weights]
    return likelihood, outputs, targets, weights


def weight_of(weights, example):
    return None if weights is None else weights[example]


@settings(max_examples=150, deadline=None)
@given(cases())
def test_losses_gradients_and_columns_are_those_of_the_literal_loss(case):
    likelihood, outputs, targets, weights = case
    likelihood.check(outputs, targets, weights)
    moving = outputs.clone().requires_grad_()
    losses = likelihood.loss(moving, targets, weights)
    (gradient,) = torch.autograd.grad(losses.sum(), moving)
    columns = [
        likelihood.column(outputs, targets, number, weights)
        for number in range(likelihood.n_columns(outputs))
    ]
    for example in range(len(outputs)):

        def literal(flat, example=example):
            one = flat.view(outputs.shape[1:])
            return literal_loss(likelihood, one, targets[example], weight_of(weights, example))

        flat = outputs[example].flatten()
        torch.testing.assert_close(losses[example].detach(), literal(flat), rtol=1e-9, atol=1e-12)
        expected = torch.autograd.functional.jacobian(literal, flat)
        torch.testing.assert_close(gradient[example].flatten(), expected, rtol=1e-9, atol=1e-12)
        root = torch.stack([column[example].flatten() for column in columns])
        hessian = torch.autograd.functional.hessian(literal, flat)
        torch.testing.assert_close(root.T @ root, hessian, rtol=1e-6, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_a_probe_is_the_columns_times_its_signs(case):
    """So that probes average to the Hessian as columns sum to it."""
    likelihood, outputs, targets, weights = case
    ids = torch.arange(len(outputs))
    found = likelihood.probe(outputs, targets, 3, 1, ids, weights)
    width = likelihood.n_columns(outputs)
    # Gaussian of variance one has B = 1, so its probe shows the signs.
    signs = Gaussian().probe(outputs, torch.zeros_like(outputs), 3, 1, ids)
    signs = signs.reshape(len(outputs), width)
    expected = sum(
        likelihood.column(outputs, targets, number, weights).reshape(len(outputs), width)
        * signs[:, number : number + 1]
        for number in range(width)
    )
    torch.testing.assert_close(found.reshape(len(outputs), width), expected)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_what_does_not_count_changes_nothing(case):
    """Other outputs there leave loss, margin, columns and probes as they are."""
    likelihood, outputs, targets, weights = case
    categorical = isinstance(likelihood, Categorical)
    counted = likelihood._counted(targets)
    elsewhere = torch.where(counted.unsqueeze(-1) if categorical else counted, outputs, 3.0)
    measures = [likelihood.loss, lambda o, t, w: likelihood.column(o, t, 0, w).reshape(len(o), -1)]
    measures += [] if isinstance(likelihood, Gaussian) else [likelihood.margin]
    for measure in measures:
        a, b = (measure(o, targets, weights) for o in (outputs, elsewhere))
        torch.testing.assert_close(a, b)
        assert bool(torch.isfinite(a).all())


@pytest.mark.parametrize("kind", [Bernoulli, Gaussian])
def test_one_number_an_example_is_like_one_column(kind):
    torch.manual_seed(0)
    outputs, targets, ids = torch.randn(6).double(), torch.rand(6).double(), torch.arange(6)
    flat, wide = (kind("mean") for _ in range(2))
    flat.check(outputs, targets)
    pairs = [
        (flat.loss(outputs, targets), wide.loss(outputs[:, None], targets[:, None])),
        (
            flat.column(outputs, targets, 0),
            wide.column(outputs[:, None], targets[:, None], 0)[:, 0],
        ),
        (
            flat.probe(outputs, targets, 0, 0, ids),
            wide.probe(outputs[:, None], targets[:, None], 0, 0, ids)[:, 0],
        ),
    ]
    if kind is Bernoulli:
        pairs.append(
            (flat.margin(outputs, targets), wide.margin(outputs[:, None], targets[:, None]))
        )
    for a, b in pairs:
        assert torch.equal(a, b)
    assert flat.n_columns(outputs) == 1


def test_the_margin_of_a_soft_label_that_is_one_class_is_that_of_the_class():
    torch.manual_seed(0)
    outputs, targets = torch.randn(6, 4).double(), torch.randint(0, 4, (6,))
    soft = F.one_hot(targets, 4).double()
    torch.testing.assert_close(
        Categorical().margin(outputs, soft), Categorical().margin(outputs, targets)
    )


@pytest.mark.parametrize(
    ("name", "returned", "words"),
    [
        ("categorical", (torch.randn(3), torch.zeros(3, dtype=torch.long)), "one logit a class"),
        ("categorical", (torch.randn(3, 2), torch.rand(3, 2)), "distributions over the classes"),
        ("categorical", (torch.randn(3, 2), torch.tensor([[2.0, -1.0]] * 3)), "distributions"),
        ("gaussian", (torch.randn(3), torch.randn(3), torch.rand(4)), "one entry an example"),
        ("gaussian", (torch.randn(3), torch.randn(3), -torch.rand(3)), "not negative"),
        ("gaussian", (torch.randn(3), torch.randn(3), torch.tensor([NAN, 1, 1])), "finite"),
        ("bernoulli", (torch.randn(3), torch.rand(3), torch.rand(3, 1)), "one entry an example"),
        (
            "bernoulli",
            (torch.randn(3), torch.rand(3), torch.rand(3, requires_grad=True)),
            "detach them",
        ),
        ("bernoulli", (torch.randn(3), torch.tensor([NAN, 0.5, 1.5])), r"\[0, 1\]"),
    ],
)
def test_what_does_not_fit_is_refused(name, returned, words):
    with pytest.raises(InputError, match=words):
        LIKELIHOODS[name]().check(*returned)


def test_a_batch_without_any_target_is_allowed():
    for likelihood in (Bernoulli(), Gaussian("mean")):
        outputs, targets = torch.randn(3), torch.full((3,), NAN)
        likelihood.check(outputs, targets)
        assert likelihood.loss(outputs, targets).tolist() == [0, 0, 0]
