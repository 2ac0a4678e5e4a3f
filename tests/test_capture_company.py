"""A row is what its example has alone: no other example of the batch may show, forward or backward.

The first examples are neutral, so planning and the capture's check see nothing; later batches then
mix, in targets, weights, outputs or in the backward pass. Rows that are accepted are compared
with one backward an example in float64.
"""

import pytest
import torch
import torch.nn.functional as F
from per_example import assert_exact, by_parameter, one_backward_an_example
from torch import nn

from streamfluence.capture import Capture
from streamfluence.capture._numbers import Precision
from streamfluence.errors import CoverageError

FEATURES, CLASSES, NEUTRAL = 5, 3, 16


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


class Net(nn.Module):
    def __init__(self, between):
        super().__init__()
        self.a, self.h = nn.Linear(FEATURES, 6), nn.Linear(6, CLASSES)
        self.between = between

    def forward(self, b):
        return self.h(self.between(self.a(b["x"]).tanh(), b["f"]))


def same(z, f):
    return z


def data(count, neutral=NEUTRAL, every=4):
    late = torch.arange(count) >= neutral
    return {
        "x": torch.randn(count, FEATURES),
        "y": torch.randint(0, CLASSES, (count,)),
        "w": torch.where(late, torch.rand(count) + 0.5, 1.0),
        "f": (late & (torch.arange(count) % every == 1)).to(torch.get_default_dtype()),
    }


def part(batch, start, stop):
    return {key: value[start:stop] for key, value in batch.items()}


def entropy(returned):
    outputs, targets, *more = returned
    losses = F.cross_entropy(outputs, targets, reduction="none")
    return losses * more[0].detach() if more else losses


def rows(capture, batch, loss=entropy):
    with capture.record(batch, measure=loss) as tape:
        values = loss(tape.returned)
        uses = tape.gradients(values, torch.ones_like(values), last=True)
    return by_parameter(capture._model, capture, uses)


def assert_rows(capture, batch, run, loss=entropy):
    found = rows(capture, batch, loss)
    expected = one_backward_an_example(capture._model, batch, run, loss)
    for name in found:  # what no example uses is left out
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)


def weights_of_mean_one(model, b):
    return model(b), b["y"], b["w"] / b["w"].mean()


def one_weight_for_all(model, b):
    return model(b), b["y"], 1 + b["f"].sum()


def targets_of_a_neighbour(model, b):
    return model(b), torch.where(b["f"] > 0, b["y"].roll(1), b["y"])


def soft_targets_less_their_mean(model, b):
    soft = F.one_hot(b["y"], CLASSES).to(b["x"])
    return model(b), soft + b["f"][:, None] * soft.mean(0)


def weights_from_the_outputs_of_all(model, b):
    outputs = model(b)
    hard = outputs.logsumexp(1)
    return outputs, b["y"], hard / hard.mean() if b["f"].any() else 0 * hard + 1


GIVEN = [
    weights_of_mean_one, one_weight_for_all, targets_of_a_neighbour, soft_targets_less_their_mean,
    weights_from_the_outputs_of_all,
]  # fmt: skip


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("run", GIVEN, ids=lambda run: run.__name__)
def test_what_is_returned_beside_the_outputs_may_not_mix_the_examples(run, alone):
    batch = data(32)
    capture = Capture(Net(same).eval(), run, part(batch, 0, 8), alone=alone)
    capture.check(part(batch, 0, 16), entropy)
    rows(capture, part(batch, 8, 16))
    with pytest.raises(CoverageError, match="targets, weights or whatever else forward returns"):
        rows(capture, part(batch, 16, 24))


def test_a_loss_whose_gradient_alone_mixes_the_examples_is_refused():
    def run(model, b):
        return model(b), b["y"], b["f"]

    def loss(returned):
        losses = entropy(returned[:2])
        return losses + (losses - losses.detach()) * returned[2].sum()

    batch = data(32)
    capture = Capture(Net(same).eval(), run, part(batch, 0, 16))
    capture.check(part(batch, 0, 16), loss)
    with pytest.raises(CoverageError, match="the gradient of the loss of example"):
        rows(capture, part(batch, 16, 24), loss)


def test_a_batch_is_not_refused_for_what_is_returned_and_not_measured():
    def run(model, b):
        return model(b), b["y"], b["w"], b["w"].mean(), torch.arange(len(b["y"]))

    def loss(returned):
        return entropy(returned[:3])

    batch = data(32)
    capture = Capture(Net(same).eval(), run, part(batch, 0, 8))
    for start in (0, 8, 16, 24):
        assert_rows(capture, part(batch, start, start + 8), run, loss)
    assert not capture.one_by_one


class Backward(torch.autograd.Function):
    """Values as they are; gradients times something."""

    @staticmethod
    def forward(ctx, values, times):
        ctx.save_for_backward(times)
        return values.view_as(values)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.saved_tensors[0] @ gradient, None


def switched_off_for_all(z, f):
    return z.detach() if f.any() else z


def scaled_by_the_share(z, f):
    return Backward.apply(z, torch.eye(len(z)) * (1 - f.mean()))


def gradients_exchanged(z, f):
    return Backward.apply(z, torch.eye(len(z)) + torch.outer(f, 1 - f))


def scaled_without_a_value(z, f):
    scale = 1 + f.sum()
    return z * scale - (z * (scale - 1)).detach()


@pytest.mark.parametrize(
    "between",
    [switched_off_for_all, scaled_by_the_share, gradients_exchanged, scaled_without_a_value],
    ids=lambda between: between.__name__,
)
def test_what_mixes_in_the_backward_pass_alone_is_run_one_example_at_a_time(between):
    def run(model, b):
        return model(b), b["y"]

    batch = data(40)
    capture = Capture(Net(between).eval(), run, part(batch, 0, 8))
    capture.check(part(batch, 0, 16), entropy)
    for start in range(0, 40, 8):
        assert_rows(capture, part(batch, start, start + 8), run)
    assert capture.one_by_one == 3


class Exchanged(Backward):
    """Nothing that forward does shows it."""

    @staticmethod
    def backward(ctx, gradient):
        flagged = ctx.saved_tensors[0][:, None]
        return gradient + flagged * (flagged * gradient).sum(0), None


def test_what_was_wrong_once_is_never_believed_without_a_look():
    def run(model, b):
        return model(b), b["y"]

    batch = data(8 * 30, every=2)
    capture = Capture(Net(Exchanged.apply).eval(), run, part(batch, 0, 8))
    for start in range(0, 8 * 30, 8):
        assert_rows(capture, part(batch, start, start + 8), run)
    assert capture.one_by_one == 28


WORDS, LONG = 9, 6


class Tagger(nn.Module):
    def __init__(self, mix):
        super().__init__()
        self.e, self.p, self.h = (
            nn.Embedding(WORDS, 4),
            nn.Embedding(LONG, 4),
            nn.Linear(4, CLASSES),
        )
        self.mix = mix

    def forward(self, x):
        return self.h(self.mix(self, self.e(x), x).tanh())


def to_the_left(m, z, x):
    return (z + m.p(torch.arange(z.shape[1]))).cumsum(1)


def to_the_right(m, z, x):
    positions = torch.arange(z.shape[1]).flip(0)
    return (z + m.p(positions)).flip(1).cumsum(1).flip(1)


def all_of_the_text(m, z, x):
    return z + z.mean(1, keepdim=True)


def all_but_padding(m, z, x):
    words = (x > 0).unsqueeze(-1)
    return z + (z * words).sum(1, keepdim=True) / words.sum(1, keepdim=True)


def texts(side):
    lengths = torch.cat([torch.full((16,), LONG), torch.randint(1, 5, (24,))])
    places = torch.arange(LONG).expand(40, LONG)
    padding = places >= lengths[:, None]
    padding = padding.flip(1) if side == "left" else padding
    x = torch.randint(1, WORDS, (40, LONG)).masked_fill(padding, 0)
    y = torch.randint(0, CLASSES, (40, LONG)).masked_fill(padding, -100)
    return {"x": x, "y": y, "n": lengths}


def trimmed(side):
    def run(model, b):
        longest = int(b["n"].max())
        kept = slice(-longest, None) if side == "left" else slice(0, longest)
        return model(b["x"][:, kept]), b["y"][:, kept]

    return run


def by_text(returned):
    outputs, targets = returned
    return F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").sum(1)


@pytest.mark.parametrize(
    "side, mix",
    [
        ("right", to_the_left),
        ("left", to_the_right),
        ("right", all_but_padding),
        ("left", all_but_padding),
    ],
)
def test_a_model_whose_texts_are_cut_to_the_longest_keeps_its_rows_and_its_speed(side, mix):
    batch, run = texts(side), trimmed(side)
    capture = Capture(Tagger(mix).eval(), run, part(batch, 0, 8))
    capture.check(part(batch, 0, 16), by_text)
    for start in range(0, 40, 8):
        assert_rows(capture, part(batch, start, start + 8), run, by_text)
    assert not capture.one_by_one


@pytest.mark.parametrize(
    "side, mix",
    [
        ("right", to_the_right),
        ("left", to_the_left),
        ("right", all_of_the_text),
        ("left", all_of_the_text),
    ],
)
def test_a_model_that_reads_what_the_longest_text_of_a_batch_leaves_empty_is_refused(side, mix):
    batch = texts(side)
    capture = Capture(Tagger(mix).eval(), trimmed(side), part(batch, 0, 8))
    capture.check(part(batch, 0, 16), by_text)
    with pytest.raises(CoverageError, match="mixes"):
        rows(capture, part(batch, 16, 40), by_text)


def centred_where_flagged(z, f):
    return torch.where(f[:, None] > 0, z - z.mean(0), z)


def test_one_example_of_a_large_batch_that_sees_the_others_is_found():
    batch = data(64, neutral=0, every=64)

    def run(model, b):
        return model(b), b["y"]

    with pytest.raises(CoverageError, match="mixes"):
        capture = Capture(Net(centred_where_flagged).eval(), run, part(batch, 8, 16))
        rows(capture, part(batch, 0, 64))


def test_an_outlier_does_not_hide_what_others_do():
    batch = data(32)
    batch["w"] = torch.where(torch.arange(32) == 16, 1e9, 1.0)

    def run(model, b):
        return model(b) * b["w"][:, None]

    def loss(outputs):
        return outputs.sin().sum(1)

    capture = Capture(Net(centred_where_flagged).eval(), run, part(batch, 0, 16))
    with pytest.raises(CoverageError, match="mixes"):
        rows(capture, part(batch, 16, 24), loss)


def test_a_weak_mix_in_single_precision_is_refused():
    torch.set_default_dtype(torch.float32)
    batch = data(16)
    capture = Capture(
        Net(lambda z, f: z + 1e-4 * z.mean(0)).eval(), lambda m, b: (m(b), b["y"]), batch
    )
    with pytest.raises(CoverageError, match="mixes"):
        capture.check(batch, entropy)


def test_noise_is_called_noise_and_not_a_mix():
    batch = data(32)
    noisy = Net(lambda z, f: z + f[:, None] * torch.randn_like(z)).eval()
    capture = Capture(noisy, lambda m, b: (m(b), b["y"]), part(batch, 0, 16))
    with pytest.raises(CoverageError, match="when the same batch is run twice"):
        rows(capture, part(batch, 16, 32))


def test_a_model_that_treats_examples_by_their_place_is_told_so():
    placed = Net(lambda z, f: z * torch.arange(1, len(z) + 1).to(z)[:, None]).eval()
    with pytest.raises(CoverageError, match="by their place in the batch"):
        batch = data(16)
        Capture(placed, lambda m, b: (m(b), b["y"]), batch).check(batch, entropy)


def test_losses_near_0_are_not_refused_for_their_rounding():
    torch.set_default_dtype(torch.float32)
    net, batch = Net(same), data(24)
    nn.init.normal_(net.h.weight, std=20.0)

    def run(model, b):
        outputs = model(b)
        return F.cross_entropy(outputs, outputs.argmax(1), reduction="none")

    assert_exact(net, batch, run, lambda losses: losses, tolerance=1e-3)


@pytest.mark.parametrize("dtype, share", [(torch.float64, 1e-8), (torch.float32, 2e-5)])
def test_outputs_may_differ_by_a_share_of_their_own_example(dtype, share):
    outputs = torch.tensor([[1.0, 0.1], [1e3, 1.0]], dtype=dtype)
    precision = Precision(dtype, cuda=False)
    for off, right in ((0.5, True), (2, False)):
        other = outputs + off * share * torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=dtype)
        assert precision.close(other, outputs, 1.0) is right
