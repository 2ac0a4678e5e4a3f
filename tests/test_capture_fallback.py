"""Whatever plain autograd can do with one example is followed exactly, announced where it is slow."""

import pytest
import torch
import torch.nn.functional as F
from per_example import assert_exact
from test_capture_models import B, Net, parameter, tokens, x
from torch import nn


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


class OldCube(torch.autograd.Function):
    """A function as they were written before torch.func: no setup_context, no vmap."""

    @staticmethod
    def forward(ctx, value):
        ctx.save_for_backward(value)
        return value**3

    @staticmethod
    def backward(ctx, gradient):
        (value,) = ctx.saved_tensors
        return 3 * value**2 * gradient


class Scale(nn.Module):
    """A module without a rule, through whatever function it is given."""

    def __init__(self, run, *shape):
        super().__init__()
        self.run, self.w = run, parameter(*shape)

    def forward(self, *inputs):
        return self.run(self.w, *inputs)


class Packed(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.r = kind(5, 4, batch_first=True)

    def forward(self, v, n):
        packed = nn.utils.rnn.pack_padded_sequence(v, n, batch_first=True, enforce_sorted=False)
        found = self.r(packed)[0]
        return nn.utils.rnn.pad_packed_sequence(found, batch_first=True, total_length=3)[0]


class Dora(nn.Module):
    """An adapter that reads its base's weight and calls it: LoRA with a learned size of each row."""

    def __init__(self, base):
        super().__init__()
        self.base, self.a, self.b = base, nn.Linear(5, 2, False), nn.Linear(2, 5, False)
        self.size = parameter(5)

    def forward(self, v):
        weight = self.base.weight + self.b.weight @ self.a.weight
        scale = self.size / weight.norm(dim=1).detach()
        return scale * (self.base(v) + self.b(self.a(v)))


class Siblings(nn.Module):
    """Two modules that each call the other's layer."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(5, 5), Borrower()
        self.other.lender = [self.one]  # in a list, so that it is no child

    def forward(self, v):
        return self.other(torch.tanh(self.one(v)))


class Borrower(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = parameter(5)

    def forward(self, v):
        return self.own * self.lender[0](v) + F.linear(v, self.lender[0].weight)


class Energy(nn.Module):
    """What it returns is a derivative: second derivatives are needed for the weights."""

    def __init__(self):
        super().__init__()
        self.n = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, v):
        v = v.detach().requires_grad_()
        return -torch.autograd.grad(self.n(v).sum(), v, create_graph=True)[0]


def hooked(module):
    module.register_full_backward_hook(lambda module, grad_input, grad_output: None)
    return module


def bag(s, t):
    offsets = torch.arange(len(t)) * t.shape[1]
    return s.f(s.e(t.flatten(), offsets).tanh())


def lengths():
    return torch.tensor([3, 1, 2, 3])


MODELS = {
    "packed LSTM": (lambda: Packed(nn.LSTM), lambda: (x(3, 5), lengths())),
    "packed GRU": (lambda: Packed(nn.GRU), lambda: (x(3, 5), lengths())),
    "packed RNN of equal lengths": (
        lambda: Packed(nn.RNN),
        lambda: (x(3, 5), torch.full((B,), 3)),
    ),
    "old-style function": (
        lambda: Net(
            lambda s, v: s.f(s.g(v)),
            g=Scale(lambda w, v: OldCube.apply(w * v), 5),
            f=nn.Linear(5, 2),
        ),
        lambda: x(5),
    ),
    "old-style function in the model": (
        lambda: Net(lambda s, v: s.f(OldCube.apply(s.w * v)), w=parameter(5), f=nn.Linear(5, 2)),
        lambda: x(5),
    ),
    "backward hook on attention": (
        lambda: Net(
            lambda s, v: s.a(v, v, v)[0],
            a=hooked(nn.MultiheadAttention(4, 2, batch_first=True)),
        ),
        lambda: x(3, 4),
    ),
    "backward hook on a layer": (
        lambda: nn.Sequential(hooked(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 2)),
        lambda: x(5),
    ),
    "embedding bag with offsets": (
        lambda: Net(bag, e=nn.EmbeddingBag(7, 4, mode="sum"), f=nn.Linear(4, 2)),
        tokens,
    ),
    "tied by a function": (
        lambda: Net(lambda s, t: F.linear(torch.tanh(s.e(t)), s.e.weight), e=nn.Embedding(7, 4)),
        tokens,
    ),
    "tied by a function to the transpose": (
        lambda: Net(lambda s, v: F.linear(torch.tanh(s.f(v)), s.f.weight.T), f=nn.Linear(5, 4)),
        lambda: x(5),
    ),
    "adapter that calls its base": (lambda: Dora(nn.Linear(5, 5)), lambda: x(5)),
    "adapter in a model": (
        lambda: nn.Sequential(nn.Linear(5, 5), nn.Tanh(), Dora(nn.Linear(5, 5))),
        lambda: x(3, 5),
    ),
    "siblings": (Siblings, lambda: x(5)),
    "sparse gradients of a module run again": (
        lambda: Scale(lambda w, t: F.embedding(t, w, sparse=True).sin(), 7, 4),
        tokens,
    ),
    "sparse gradients of an embedding": (lambda: nn.Embedding(7, 4, sparse=True), tokens),
    "sparse gradients of a parameter that is gathered": (
        lambda: Scale(
            lambda w, t: w.expand(7, 4).gather(0, t[:, :4], sparse_grad=True).sin(), 7, 4
        ),
        tokens,
    ),
    "sparse gradients of all of forward": (
        lambda: Net(
            lambda s, t: s.g(s.e(t[t.sum(1).argsort()]))[t.sum(1).argsort().argsort()],
            e=nn.Embedding(7, 4, sparse=True),
            g=nn.Linear(4, 2),
        ),
        tokens,
    ),
    "second derivatives": (Energy, lambda: x(5)),
    "second derivatives of a part": (
        lambda: nn.Sequential(nn.Linear(5, 5), Energy()),
        lambda: x(5),
    ),
    "scripted part": (
        lambda: nn.Sequential(nn.Linear(5, 4), torch.jit.script(nn.Sequential(nn.Linear(4, 3)))),
        lambda: x(5),
    ),
    "positions before examples in one axis": (
        lambda: Net(
            lambda s, v: (
                s.f(v.transpose(0, 1).reshape(-1, 5)).view(v.shape[1], len(v), 5).transpose(0, 1)
            ),
            f=nn.Linear(5, 5),
        ),
        lambda: x(3, 5),
    ),
    "input changed in place after the call": (
        lambda: Net(
            lambda s, v: changed_in_place(s, v * 1.0),
            f=Scale(lambda w, v: v + w, 5),
            g=nn.Linear(5, 2),
        ),
        lambda: x(5),
    ),
}


def changed_in_place(s, hidden):
    out = s.f(hidden)
    return s.g(torch.tanh(out) + hidden.mul_(2.0))


class Takes(nn.Module):
    """Gives a model of several inputs its batch."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, batch):
        return self.inner(*batch)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Full backward hook")
@pytest.mark.parametrize("name", MODELS)
def test_what_plain_autograd_can_do_is_exact(name):
    make, batch = MODELS[name]
    values = batch()
    model = Takes(make()) if isinstance(values, tuple) else make()
    _, _, left_out = assert_exact(model, values)
    assert not left_out


def test_outputs_that_a_batch_of_one_squeezes_are_exact():
    net = Net(
        lambda s, v: s.g(torch.tanh(s.f(v))),
        f=nn.Linear(5, 4),
        g=Scale(lambda w, v: (v @ w).squeeze(), 4, 1),
    )
    assert_exact(net, x(5), loss=lambda returned: torch.sin(returned.reshape(-1)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_traced_model_is_exact():
    net = torch.jit.trace(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)), x(5))
    capture, *_ = assert_exact(net, x(5))
    assert "one example at a time" in capture.announcements[-1]


def test_the_slowest_path_is_announced_with_its_cost():
    capture, *_ = assert_exact(Siblings(), x(5))
    assert any("exact, slower" in said or "slowest" in said for said in capture.announcements)
