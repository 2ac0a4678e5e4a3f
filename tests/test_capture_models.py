"""Per-example gradients of whole models, with what real models do around their layers."""

import pytest
import torch
import torch.nn.functional as F
from per_example import assert_exact, by_parameter, one_backward_an_example, uses_of
from torch import nn
from torch.utils.checkpoint import checkpoint

from streamfluence.capture import Capture

B = 4


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


class Net(nn.Module):
    """A model from its parts and a function of (self, x)."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.run(self, x)


def parameter(*shape):
    return nn.Parameter(torch.randn(shape))


def tokens():
    return torch.randint(0, 7, (B, 5))


def x(*shape):
    return torch.randn(B, *shape)


@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize("bias", [True, False])
def test_an_embedding_tied_to_the_output_counts_both_uses_once(padding, bias):
    embed, head = nn.Embedding(7, 4, padding_idx=padding), nn.Linear(4, 7, bias=bias)
    head.weight = embed.weight
    net = Net(
        lambda s, t: s.head(torch.tanh(s.mix(s.embed(t)))),
        embed=embed,
        mix=nn.Linear(4, 4),
        head=head,
    )
    capture, _, left_out = assert_exact(net, tokens())
    assert not left_out
    assert "tied, one block: embed.weight = head.weight" in capture.announcements
    assert sum("embed.weight" in block.parameters for block in capture.blocks) == 1


def test_one_module_under_two_names_is_counted_once_a_call():
    layer = nn.Linear(5, 5)
    assert_exact(Net(lambda s, x: s.b(torch.tanh(s.a(x))), a=layer, b=layer), x(5))


@pytest.mark.parametrize("frozen", [None, "weight", "bias"])
def test_a_module_called_three_times_adds_its_calls(frozen):
    layer = nn.Linear(5, 5)
    if frozen:
        getattr(layer, frozen).requires_grad_(False)
    assert_exact(
        Net(lambda s, x: s.f(torch.tanh(s.f(torch.tanh(s.f(x)).mean(1)))), f=layer), x(3, 5)
    )


def test_a_norm_called_twice():
    assert_exact(Net(lambda s, x: s.n(torch.tanh(s.n(x))), n=nn.LayerNorm(5)), x(3, 5))


CONTAINERS = {
    "class token and positions": (
        lambda: Net(
            lambda s, x: s.head(torch.tanh(torch.cat([s.c.expand(len(x), -1, -1), x], 1) + s.p)),
            c=parameter(1, 1, 5),
            p=parameter(4, 5),
            head=nn.Linear(5, 2),
        ),
        lambda: x(3, 5),
    ),
    "position table over arange": (
        lambda: Net(
            lambda s, t: s.head(torch.tanh(s.e(t) * s.p(torch.arange(t.shape[1])))),
            e=nn.Embedding(7, 4),
            p=nn.Embedding(5, 4),
            head=nn.Linear(4, 2),
        ),
        tokens,
    ),
    "position table through a layer": (
        lambda: Net(
            lambda s, t: torch.tanh(s.e(t) + s.q(torch.tanh(s.p(torch.arange(t.shape[1])[None])))),
            e=nn.Embedding(7, 4),
            p=nn.Embedding(5, 4),
            q=nn.Linear(4, 4),
        ),
        tokens,
    ),
    "scalar temperature": (
        lambda: Net(lambda s, x: s.f(x) * s.t, t=parameter(), f=nn.Linear(5, 2)),
        lambda: x(5),
    ),
    "scale of a residual": (
        lambda: Net(lambda s, x: x + s.g * s.f(x), g=parameter(5), f=nn.Linear(5, 5)),
        lambda: x(3, 5),
    ),
    "lists and dictionaries of parameters": (
        lambda: Net(
            lambda s, x: (torch.tanh(x * s.a[0]) + s.a[1]) @ s.b["z"],
            a=nn.ParameterList([parameter(5), parameter(5)]),
            b=nn.ParameterDict({"z": parameter(5, 2)}),
        ),
        lambda: x(3, 5),
    ),
    "fused experts": (
        lambda: Net(
            lambda s, x: torch.einsum("bti,kio,btk->bto", x, s.w, s.gate(x).softmax(-1)),
            w=parameter(3, 5, 4),
            gate=nn.Linear(5, 3),
        ),
        lambda: x(3, 5),
    ),
    "a layer's weights read but the layer not called": (
        lambda: Net(lambda s, x: F.linear(x, s.f.weight, s.f.bias), f=nn.Linear(5, 5)),
        lambda: x(5),
    ),
    "low-rank adapter": (
        lambda: Net(
            lambda s, x: s.base(x) + F.linear(F.linear(x, s.down), s.up),
            base=nn.Linear(5, 3).requires_grad_(False),
            down=parameter(2, 5),
            up=parameter(3, 2),
        ),
        lambda: x(2, 5),
    ),
}


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("nested", [False, True])
def test_parameters_outside_layers(name, nested):
    make, batch = CONTAINERS[name]
    net = nn.Sequential(make(), nn.Tanh()) if nested else make()
    assert not assert_exact(net, batch())[2]


@pytest.mark.parametrize(
    "net, shape",
    [
        (lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)), (5,)),
        (lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)), (2, 5)),
        (
            lambda: nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 2)
            ),
            (3, 6, 6),
        ),
        (lambda: Net(lambda s, x: torch.tanh(s.f(x).add_(x)), f=nn.Linear(5, 5)), (3, 5)),
        (lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)), (5,)),
    ],
    ids=["linear", "linear over positions", "conv and norm", "residual", "batch norm"],
)  # fmt: skip
def test_operations_in_place(net, shape):
    assert_exact(net(), x(*shape))


def test_examples_folded_with_positions():
    def run(s, x):
        flat = x.reshape(-1, x.shape[-1])
        return s.h(torch.tanh(s.n(s.f(flat)))).view(*x.shape[:-1], -1)

    assert_exact(Net(run, f=nn.Linear(5, 6), n=nn.LayerNorm(6), h=nn.Linear(6, 2)), x(3, 5))


def test_images_folded_with_frames():
    def run(s, x):
        return s.c(x.flatten(0, 1)).unflatten(0, (len(x), -1))

    assert_exact(Net(run, c=nn.Conv2d(3, 4, 2)), x(2, 3, 4, 4))


@pytest.mark.parametrize("length", [3, B])
def test_the_example_axis_in_second_place(length):
    def run(s, x):
        return s.h(torch.tanh(s.n(s.f(x.transpose(0, 1))))).transpose(0, 1)

    assert_exact(Net(run, f=nn.Linear(5, 6), n=nn.LayerNorm(6), h=nn.Linear(6, 2)), x(length, 5))


@pytest.mark.parametrize("examples", [1, 2, 5])
def test_any_number_of_examples_and_shapes_the_plan_did_not_see(examples):
    net = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Conv1d(3, 1, 2)).eval()
    capture = Capture(net, lambda m, b: m(b), x(2, 6))
    for length in (6, 9):
        batch = torch.randn(examples, 2, length)
        found = by_parameter(net, capture, uses_of(capture, batch))
        expected = one_backward_an_example(net, batch)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-12)


def test_nested_batches_of_several_types():
    net = Net(
        lambda s, b: s.f(torch.tanh(torch.cat([s.e(b["t"][0]).mean(1), b["x"][1]], -1))),
        e=nn.Embedding(7, 4),
        f=nn.Linear(7, 2),
    )
    assert_exact(net, {"t": (tokens(),), "x": [x(1), x(3)]})


@pytest.mark.parametrize("where", ["whole", "part", "in place"])
def test_compiled_models(where):
    net = Net(lambda s, x: s.o(torch.tanh(s.f(x))), f=nn.Linear(5, 5), o=nn.Linear(5, 2))
    if where == "part":
        net.f = torch.compile(net.f, backend="eager")
    elif where == "in place":
        net.compile(backend="eager")
    else:
        net = torch.compile(net, backend="eager")
    assert_exact(net, x(5))


class Block(nn.Module):
    """Layers, a parameter of its own, and a table that the batch shares."""

    def __init__(self):
        super().__init__()
        self.scale, self.table = parameter(5), nn.Embedding(3, 5)
        self.f, self.n = nn.Linear(5, 5), nn.LayerNorm(5)

    def forward(self, x):
        return self.n(torch.tanh(self.f(x * self.scale + self.table(torch.arange(x.shape[1])))))


def test_activation_checkpointing_is_no_second_use():
    def run(s, x):
        return s.o(checkpoint(s.b, s.i(x), use_reentrant=False))

    assert_exact(Net(run, i=nn.Linear(5, 5), b=Block(), o=nn.Linear(5, 2)), x(3, 5))


class Several(nn.Module):
    """Returns its input, a hidden state and a function of that; reads a layer it does not call."""

    def __init__(self):
        super().__init__()
        self.table, self.f = nn.Embedding(5, 5), nn.Linear(5, 5)

    def forward(self, x):
        hidden = torch.tanh(self.f(x) @ self.table.weight)
        return {"last": hidden.square(), "all": (x, hidden, hidden)}


def test_outputs_computed_from_one_another_are_not_counted_twice():
    def run(s, x):
        found = s.body(x)
        return s.head(found["last"] + found["all"][1] * found["all"][0]) + found["all"][2]

    assert not assert_exact(Net(run, body=Several(), head=nn.Linear(5, 5)), x(3, 5))[2]


class Routed(nn.Module):
    """Each position goes to one expert: how many positions an expert sees depends on the values."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(5, 3)
        nn.init.normal_(self.gate.weight, std=3.0)
        self.experts = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))

    def forward(self, x):
        weights = self.gate(x).softmax(-1)
        mixed = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            here = weights.argmax(-1) == number
            if here.any():
                mixed[here] = expert(x[here]) * weights[here][:, number, None]
        return mixed


@pytest.mark.parametrize("shape", [(5,), (3, 5)])
@pytest.mark.parametrize("seed", range(3))
def test_routed_experts_are_run_again_example_by_example(shape, seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 5), Routed(), nn.Linear(5, 2))
    capture, _, left_out = assert_exact(net, torch.randn(16, *shape))
    assert not left_out
    assert any("run again" in said and "Routed" in said for said in capture.announcements)


def test_an_expert_that_planning_did_not_see_is_captured_when_it_is_used():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 5), Routed()).eval()
    many = torch.randn(64, 5)
    choice = net[1].gate(net[0](many)).argmax(-1)
    plan = torch.cat([many[choice == 0][:3], many[choice == 1][:2]])
    assert_exact(net, many, plan=plan[[0, 3, 1, 4, 2]])


def test_a_loop_over_examples_is_run_again():
    net = Net(lambda s, x: torch.stack([s.f(one) for one in x]), f=nn.Linear(5, 4))
    assert_exact(nn.Sequential(net, nn.Linear(4, 2)), x(5))


def test_hooks_of_the_user_are_honoured():
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    net[0].register_forward_hook(lambda module, inputs, output: output * 2.0)
    net[2].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 3.0,))
    assert_exact(net, x(5))


def test_the_model_is_left_as_it_was():
    net = CONTAINERS["class token and positions"][0]().eval()
    before = {name: (id(p), p.detach().clone()) for name, p in net.named_parameters()}
    capture = Capture(net, lambda m, b: m(b), x(3, 5))
    uses_of(capture, x(3, 5))
    for name, p in net.named_parameters():
        assert id(p) == before[name][0] and torch.equal(p, before[name][1]) and p.grad is None
    assert not any(module._forward_hooks for module in net.modules())


def test_parameters_that_forward_never_uses_are_named():
    net = Net(lambda s, x: s.f(x), f=nn.Linear(5, 3), idle=nn.Linear(2, 2))
    capture, _, left_out = assert_exact(net, x(5))
    assert left_out == {"idle.weight", "idle.bias"}
    assert "never used by forward, left out: idle.weight, idle.bias" in capture.announcements


def test_the_settings_of_cudnn_are_the_users_while_forward_runs():
    seen = []

    def run(s, x):
        seen.append((torch.backends.cudnn.enabled, torch.backends.cudnn.deterministic))
        return s.f(x)

    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        assert_exact(Net(run, f=nn.Linear(5, 2)), x(5))
    finally:
        torch.backends.cudnn.deterministic = before
    assert set(seen) == {(torch.backends.cudnn.enabled, True)}
