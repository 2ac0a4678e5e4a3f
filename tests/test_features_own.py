"""Losses and measurements of a task's own: those that mix their batch are refused, no others."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from streamfluence.capture._numbers import Precision
from streamfluence.errors import CoverageError
from streamfluence.features._own import OwnValues

N = 8


def batch(count=N, dtype=torch.float32):
    """Outputs with a graph, targets, flags of one pair of examples, and weights of the 8 classes."""
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(count, 8, generator=generator).to(dtype)
    flags = torch.zeros(count)
    flags[[2, 3]] = 1.0
    targets = torch.arange(count) % 5
    return outputs.requires_grad_() * 1, targets, flags, torch.linspace(0.5, 1.5, 8)


def forward(examples):
    outputs, targets, flags, weights = batch()
    return outputs[examples], targets[examples], flags[examples], weights


def tape(returned, again=None):
    """What forward returned, and returns again of some of the same examples."""

    own = min(3, len(returned) - 1)  # the last belongs to no example
    before = [t.detach().clone() for t in returned]

    def some(examples):
        return (*(t[examples] for t in before[:own]), *before[own:])

    return SimpleNamespace(
        returned=returned,
        examples=len(returned[0]),
        again=again or some,
        precision=Precision(returned[0].dtype, False),
    )


def losses(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


def measured(loss, returned=None, looked=0):
    own = OwnValues()
    own._looked = looked
    returned = batch() if returned is None else returned
    return own.measure(lambda r: loss(*r), tape(returned))


def pulled(o, y, f, w):
    """Flagged examples are pulled together, which two copies of one do not show."""
    both = f[:, None] * f[None] * (1 - torch.eye(len(f)))
    return losses(o, y) + ((o[:, None] - o[None]).square().sum(-1) * both).sum(1)


def scaled(o, y, f, w):
    """The value is the loss; its gradient counts double in a batch with a flag."""
    loss = losses(o, y)
    return loss + f.max() * (loss - loss.detach())


MIXING = {
    "pairs attract": pulled,
    "only the gradient changes": scaled,
    "a mean of the batch": lambda o, y, f, w: losses(o, y) / losses(o, y).mean(),
    "a detached mean of the batch": lambda o, y, f, w: losses(o, y) / losses(o, y).detach().mean(),
    "the number of examples": lambda o, y, f, w: losses(o, y) / len(o),
    "the place in the batch": lambda o, y, f, w: losses(o, y) * (1 + torch.arange(len(o)) / 1e3),
    "an output of another example": lambda o, y, f, w: losses(o, y) + 1e-3 * o.roll(1, 0)[:, 0],
    "class weights by the batch": lambda o, y, f, w: losses(o, y) / torch.bincount(y)[y],
    "a NaN of one example": lambda o, y, f, w: (
        losses(o, y) + 0 * o.masked_fill(f[:, None] > 0, float("nan")).sum()
    ),
}


@pytest.mark.parametrize("looked", [0, 100])
@pytest.mark.parametrize("name", MIXING)
def test_a_loss_that_mixes_its_batch_is_refused_early_and_late(name, looked):
    with pytest.raises(CoverageError, match="the others of its batch"):
        measured(MIXING[name], looked=looked)


def test_the_refusal_says_where_only_the_gradient_changes():
    with pytest.raises(CoverageError, match="keeps its value, but its gradient"):
        measured(scaled)


def test_a_loss_whose_extras_point_into_the_batch_is_refused():
    returned = (*batch()[:2], torch.tensor([[6, 7]]))
    with pytest.raises(CoverageError, match="cannot be measured without the others"):
        measured(lambda o, y, p: losses(o, y) + (o[p[:, 0]] - o[p[:, 1]]).square().sum(), returned)


RANDOM = {
    "values": lambda o, y, f, w: losses(o + f[:, None] * torch.randn(o.shape), y),
    "gradients": lambda o, y, f, w: losses(o + torch.rand(()) * (o - o.detach()), y),
}


@pytest.mark.parametrize("name", RANDOM)
def test_a_loss_with_noise_is_refused_as_random(name):
    with pytest.raises(CoverageError, match="random"):
        measured(RANDOM[name])


def test_noise_of_forward_is_not_called_mixing():
    def run(examples):
        outputs, *rest = forward(examples)
        return outputs + torch.randn(outputs.shape), *rest

    with pytest.raises(CoverageError, match="random"):
        OwnValues().measure(lambda r: losses(*r[:2]), tape(run(list(range(N))), run))


def in_place(o, y, f, w):
    o /= 2.0
    y[f > 0] = 0
    return losses(o, y)


OWN = {
    "a loss": lambda o, y, f, w: losses(o, y),
    "weights as many as the batch has examples": lambda o, y, f, w: losses(o * w, y),
    "class weights": lambda o, y, f, w: losses(o, y) * w[y],
    "flags": lambda o, y, f, w: losses(o, y) * (1 + f),
    "in place": in_place,
    "nothing to differentiate": lambda o, y, f, w: losses(o.detach(), y),
    "single precision only": lambda o, y, f, w: F.cross_entropy(
        o.float(), y, weight=w, reduction="none"
    ),
    "learned long ago": lambda o, y, f, w: losses(o * 1e-3 + 30 * F.one_hot(y, 8), y),
    "infinite for one": lambda o, y, f, w: losses(o, y) / (1 - f),
    "sparse gradients": lambda o, y, f, w: o.gather(1, y[:, None], sparse_grad=True)[:, 0],
    "a constant": lambda o, y, f, w: torch.ones(len(o)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", OWN)
def test_a_loss_of_each_examples_own_is_measured_as_it_is(name, dtype):
    torch.testing.assert_close(
        measured(OWN[name], batch(dtype=dtype)), OWN[name](*batch(dtype=dtype)), equal_nan=True
    )


@pytest.mark.parametrize("count", [1, 2, 3, 13])
def test_any_number_of_examples_may_be_measured(count):
    outputs, targets, *_ = batch(count=13)
    returned = (outputs[:count], targets[:count], torch.zeros(count), torch.ones(8))
    torch.testing.assert_close(measured(OWN["a loss"], returned), losses(*returned[:2]))


def test_a_loss_that_needs_the_graph_of_the_model_is_refused_for_that_cause():
    x = torch.randn(N, 8, requires_grad=True)

    def penalised(o, x):
        (slope,) = torch.autograd.grad(o.sum(), x, create_graph=True)
        return slope.square().sum(1)

    with pytest.raises(CoverageError, match="only with the graph"):
        measured(penalised, (x.sin(), x))


@pytest.mark.parametrize("looked", [0, 1, 2])
def test_a_loss_that_reads_what_forward_kept_of_its_batch_is_refused(looked):
    kept = {}

    def run(examples):
        returned = forward(examples)
        kept["mean"] = returned[0].detach().mean()
        return returned

    own = OwnValues()
    own._looked = looked
    with pytest.raises(CoverageError, match="where forward runs on it alone"):
        own.measure(lambda r: losses(*r[:2]) * kept["mean"], tape(run(list(range(N))), run))
