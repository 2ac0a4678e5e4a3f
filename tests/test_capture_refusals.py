"""What has no per-example gradient, or was not planned, is refused by name: never a wrong number."""

import pickle

import pytest
import torch
from per_example import forward, uses_of, weighted
from test_capture_models import Net
from torch import nn
from torch.utils.checkpoint import checkpoint

from streamfluence.capture import Capture
from streamfluence.errors import CoverageError, InputError


def checked(model, batch, exclude=(), run=forward):
    model.eval()
    capture = Capture(model, run, batch, exclude)
    capture.check(batch, weighted)
    return capture


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def linear(run):
    return Net(run, f=nn.Linear(5, 5))


MIXING = {
    "a mean over the batch": lambda s, x: s.f(x) - s.f(x).mean(0),
    "a softmax over the batch": lambda s, x: s.f(x).softmax(0),
    "examples compared with each other": lambda s, x: s.f(x) @ s.f(x).T,
}


@pytest.mark.parametrize("name", MIXING)
def test_examples_that_interact_are_refused(name):
    with pytest.raises(CoverageError, match=r"changes with the other examples.*mixes"):
        checked(linear(MIXING[name]), torch.randn(4, 5))


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_without_statistics_is_refused(affine):
    norm = nn.BatchNorm2d(4, affine=affine, track_running_stats=False)
    with pytest.raises(CoverageError, match=r"no running statistics|changes with the other"):
        checked(nn.Sequential(nn.Conv2d(3, 4, 3), norm), torch.randn(4, 3, 5, 5))


@pytest.mark.parametrize("option, value", [("max_norm", 1.0), ("scale_grad_by_freq", True)])
def test_embeddings_whose_gradient_depends_on_the_batch_are_refused(option, value):
    net = nn.Sequential(nn.Embedding(7, 4, **{option: value}), nn.Linear(4, 2))
    with pytest.raises(CoverageError, match=f"{option}.*exclude 0.weight"):
        checked(net, torch.randint(0, 7, (4, 3)))
    checked(net, torch.randint(0, 7, (4, 3)), exclude=["0.*"])


@pytest.mark.parametrize("part", [None, 1])
def test_training_mode_is_refused_also_of_one_part(part):
    net = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5)).eval()
    (net if part is None else net[part]).train()
    with pytest.raises(CoverageError, match=r"training mode.*call model\.eval\(\)"):
        Capture(net, forward, torch.randn(4, 5))


def test_a_model_that_goes_back_to_training_mode_is_refused():
    net = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5)).eval()
    capture = Capture(net, forward, torch.randn(4, 5))
    net[1].train()
    with pytest.raises(CoverageError, match="training mode"):
        uses_of(capture, torch.randn(4, 5))


def test_a_weight_tied_to_anothers_transpose_is_refused():
    net = Net(lambda s, x: s.b(s.a(x)), a=nn.Linear(5, 3, False), b=nn.Linear(3, 5, False))
    net.b.weight = nn.Parameter(net.a.weight.data.T)
    with pytest.raises(CoverageError, match=r"a\.weight and b\.weight share memory"):
        checked(net, torch.randn(4, 5))


def test_a_model_that_autograd_fails_on_is_refused():
    def run(s, x):
        hidden = torch.tanh(x) * 1.0
        out = s.f(hidden)
        return out + hidden.mul_(2.0)

    with pytest.raises(CoverageError, match=r"autograd itself fails.*inplace"):
        checked(linear(run), torch.randn(4, 5))


class Merged(nn.Module):
    """Merges its adapter into its weight once, and keeps the result where it is told to."""

    def __init__(self, kept):
        super().__init__()
        self.w, self.a = nn.Parameter(torch.randn(5, 5)), nn.Parameter(torch.randn(5, 5))
        self.kept = kept

    def forward(self, x):
        if not self.kept:
            self.kept["merged"] = self.w + self.a @ self.a
        return x @ self.kept["merged"]


@pytest.mark.parametrize("before", [False, True])
def test_a_weight_that_is_kept_with_its_graph_is_refused_by_name(before):
    net = nn.Sequential(nn.Linear(5, 5), Merged({}))
    if before:
        net(torch.randn(1, 5))
    with pytest.raises(CoverageError, match=r"1\.kept: kept from an earlier forward.*anew"):
        checked(net, torch.randn(4, 5))


def test_what_a_model_keeps_to_look_at_is_no_cause_to_refuse():
    class Looked(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.first, self.last = nn.Linear(5, 5), None, []
            self.itself = {"again": self.last}
            self.itself["itself"] = self.itself

        def forward(self, x):
            found = self.f(x)
            self.first = found if self.first is None else self.first
            self.last = [found]
            return found

    checked(Looked(), torch.randn(4, 5))


def test_a_graph_that_is_kept_elsewhere_is_refused_for_that_cause():
    kept = []

    def run(s, x):
        kept[:] = kept or [s.f.weight * 2.0]
        return x @ kept[0] @ kept[0]

    with pytest.raises(CoverageError, match="kept from an earlier forward"):
        checked(linear(run), torch.randn(4, 5))


def test_reentrant_checkpointing_is_refused_with_the_remedy():
    def run(s, x):
        return s.f(checkpoint(s.g, x, use_reentrant=True))

    net = Net(run, f=nn.Linear(5, 5), g=nn.Linear(5, 5))
    with pytest.raises(CoverageError, match="use_reentrant=False"):
        checked(net, torch.randn(4, 5, requires_grad=True))


def test_a_layer_inside_a_function_that_hides_its_gradient_is_refused():
    class Reversible(torch.autograd.Function):
        @staticmethod
        def forward(context, x, layer):
            context.layer = layer
            context.save_for_backward(x)
            with torch.no_grad():
                return x + layer(x)

        @staticmethod
        def backward(context, gradient):
            with torch.enable_grad():
                x = context.saved_tensors[0].detach().requires_grad_()
                torch.autograd.backward(x + context.layer(x), gradient)
            return x.grad, None

    net = Net(
        lambda s, x: s.f(Reversible.apply(s.h(x), s.g)),
        f=nn.Linear(5, 5),
        g=nn.Linear(5, 5),
        h=nn.Linear(5, 5),
    )
    with pytest.raises(CoverageError, match=r"g \(Linear\) ran inside a torch.autograd.Function"):
        checked(net, torch.randn(4, 5))


def test_a_layer_first_called_after_planning_is_refused():
    net = Net(
        lambda s, x: s.f(x) + s.g(x) if len(x) == 7 else s.f(x),
        f=nn.Linear(5, 5),
        g=nn.Linear(5, 5),
    )
    capture = checked(net, torch.randn(4, 5))
    assert any("g.weight" in said for said in capture.announcements)
    with pytest.raises(CoverageError, match=r"g\.weight: not used by the first examples"):
        uses_of(capture, torch.randn(7, 5))


def test_one_loss_for_the_batch_is_refused():
    net = nn.Linear(5, 2).eval()
    with pytest.raises(CoverageError, match="one loss per example, not their mean"):
        Capture(net, forward, torch.randn(4, 5)).check(torch.randn(4, 5), lambda y: y.mean())


def test_a_detached_output_is_refused():
    with pytest.raises(CoverageError, match="do not depend on any captured parameter"):
        checked(linear(lambda s, x: s.f(x).detach()), torch.randn(4, 5))


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(InputError, match="'head"):
        checked(nn.Linear(5, 2), torch.randn(4, 5), exclude=["head*"])


def test_excluded_and_frozen_parameters_are_left_out_and_everything_frozen_is_refused():
    net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2), nn.Linear(2, 2))
    net[1].requires_grad_(False)
    capture = checked(net, torch.randn(4, 5), exclude=["0.*"])
    assert [block.parameters for block in capture.blocks] == [("2.weight", "2.bias")]
    with pytest.raises(CoverageError, match="no trainable parameter"):
        checked(nn.Linear(5, 2).requires_grad_(False), torch.randn(4, 5))


def test_batches_without_a_common_number_of_examples_are_refused():
    net = Net(lambda s, b: s.f(b[0]), f=nn.Linear(5, 5))
    for batch in ([torch.randn(4, 5), torch.randn(3, 5)], [torch.randn(0, 5)], []):
        with pytest.raises(InputError, match="example axis"):
            Capture(net.eval(), forward, batch)


def test_a_refusal_survives_the_way_from_another_process():
    net = Net(lambda s, x: s.f(x[x.sum(-1) > 0]), f=nn.Linear(5, 5))
    with pytest.raises(CoverageError, match="one loss per example") as caught:
        checked(net, torch.randn(8, 5))
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is CoverageError and str(again) == str(caught.value)
