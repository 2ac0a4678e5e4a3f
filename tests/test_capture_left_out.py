"""What no gradient comes back to is left out, named, and the rest is exact."""

import pytest
import torch
from per_example import assert_exact
from test_capture_models import Net, parameter, x
from torch import nn


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def without_gradients(function, *inputs):
    with torch.no_grad():
        return function(*inputs)


def switched_off(function, *inputs):
    with torch.set_grad_enabled(False):
        return function(*inputs)


def teacher(s, v):
    """A layer and a module without a rule, each called with and without gradients."""
    target = without_gradients(lambda v: s.n(s.f(v)).softmax(-1), v)
    return s.n(torch.tanh(s.f(v))) * target


def solved(s, v):
    """A fixed point, found in a number of steps that goes with the batch, then one with gradients."""
    z = torch.zeros_like(v)
    for _ in range(60 + len(v)):  # each divides the error by four or more
        z = without_gradients(lambda z: torch.tanh(s.f(z) / 4 + v), z)
    return torch.tanh(s.f(z) / 4 + v)


class Doubled(nn.Module):
    """A module without a rule that calls its layer with and without gradients itself."""

    def __init__(self):
        super().__init__()
        self.f, self.w = nn.Linear(5, 5), parameter(5)

    def forward(self, v):
        return self.f(v * self.w) * without_gradients(self.f, v)


NETS = {
    "a teacher that is the student": lambda: Net(teacher, f=nn.Linear(5, 4), n=nn.LayerNorm(4)),
    "two halves that share a layer": lambda: Net(
        lambda s, v: s.b(torch.tanh(s.f(v))) + s.c(switched_off(s.b, v)).sin(),
        f=nn.Linear(5, 5),
        b=(layer := nn.Linear(5, 5)),
        c=layer,
    ),
    "a module that has to be run again": lambda: nn.Sequential(Doubled(), nn.Linear(5, 2)),
}


@pytest.mark.parametrize("name", NETS)
def test_calls_without_gradients_take_no_part(name):
    _, _, left_out = assert_exact(NETS[name](), x(5))
    assert not left_out


def test_calls_without_gradients_may_differ_in_number():
    assert_exact(Net(solved, f=nn.Linear(5, 5)), x(5))


@pytest.mark.parametrize("off", [without_gradients, switched_off])
def test_a_backbone_that_runs_without_gradients_is_left_out(off):
    net = Net(lambda s, v: s.h(off(s.b, v)), b=nn.Linear(5, 4), h=nn.Linear(4, 2))
    capture, _, left_out = assert_exact(net, x(5))
    assert left_out == {"b.weight", "b.bias"}
    assert "never used by forward, left out: b.weight, b.bias" in capture.announcements


def test_a_layer_with_a_weight_without_an_entry_keeps_its_bias():
    net = Net(lambda s, v: s.f(v) + s.g(v[:, :0]), f=nn.Linear(5, 4), g=nn.Linear(5, 4))
    net.g.weight = nn.Parameter(torch.empty(4, 0))
    _, _, left_out = assert_exact(net, x(5))
    assert left_out == {"g.weight"}


def test_a_parameter_without_an_entry_is_left_out():
    net = Net(lambda s, v: s.f(v) + s.z.sum(), f=nn.Linear(5, 4), z=parameter(0, 4))
    capture, _, left_out = assert_exact(net, x(5))
    assert left_out == {"z"}
    assert "without an entry, left out: z" in capture.announcements
