"""Where numbers of several examples meet is known from shapes, whatever the values are."""

import pytest
import torch
from test_capture_company import Net, data, double, entropy, part, rows  # noqa: F401
from torch import nn

from streamfluence.capture import Capture
from streamfluence.capture._meeting import examples_meet
from streamfluence.errors import CoverageError

WIDTH = 8  # of the features, and of the batch, so that no size tells them apart


def linear():
    return nn.Linear(WIDTH, WIDTH)


def shares(b):
    return b["f"] / b["f"].sum().clamp(min=1)


APART = {
    "a layer": lambda m, b: m(b["x"]).softmax(-1),
    "a layer of the transposed": lambda m, b: m(b["x"]).T.softmax(0),
    "a mean over time, which comes first": lambda m, b: m(b["x"]).view(-1, 2, 4).transpose(0, 1).mean(0),
    "one by one": lambda m, b: torch.stack([m(row) for row in b["x"]]),
    "a sum over features": lambda m, b: m(b["x"]).sum(1),
    "attention among the tokens of each": lambda m, b: (
        nn.functional.scaled_dot_product_attention(*[m(b["x"]).view(-1, 2, 4)] * 3)
    ),
    "a longest text": lambda m, b: m(b["x"])[:, : int((b["x"] > 9).sum(1).max()) + 4],
}  # fmt: skip
MEETING = {
    "a mean": lambda m, b: m(b["x"]) - b["f"][:, None] * m(b["x"]).mean(0),
    "a detached deviation": lambda m, b: m(b["x"]) / (1 + b["f"][:, None] * b["x"].std(0)),
    "a softmax": lambda m, b: m(b["x"]).softmax(0),
    "a softmax of the transposed": lambda m, b: m(b["x"]).T.softmax(1),
    "a running sum": lambda m, b: m(b["x"]).cumsum(0),
    "a weighted sum": lambda m, b: m(b["x"]) + shares(b) @ m(b["x"]),
    "a matrix": lambda m, b: torch.diag(shares(b)) @ m(b["x"]),
    "pairs": lambda m, b: (b["x"] @ b["x"].T).softmax(-1) @ m(b["x"]),
    "differences": lambda m, b: (m(b["x"])[:, None] - m(b["x"])[None]).abs().sum(1),
    "missing values filled": lambda m, b: m(b["x"].where(b["x"].isnan(), b["x"].nanmean(0))),
    "statistics of the batch": lambda m, b: nn.functional.batch_norm(
        m(b["x"]), None, None, training=True
    ),
}


@pytest.mark.parametrize("name", [*APART, *MEETING])
def test_examples_that_meet_are_told_from_those_that_are_kept_apart(name):
    layer = linear()
    batch = {"x": torch.randn(WIDTH, WIDTH), "f": torch.zeros(WIDTH)}
    run = (APART | MEETING)[name]
    assert examples_meet(lambda b: run(layer, b), batch) is (name in MEETING)


def centred_by_share(z, f):
    share = f / f.sum().clamp(min=1)
    return z - f[:, None] * (share[:, None] * z).sum(0)


def centred_by_a_detached_share(z, f):
    return z - (f[:, None] * z.detach()).sum(0) * f[:, None]


@pytest.mark.parametrize("between", [centred_by_share, centred_by_a_detached_share])
def test_a_mix_that_a_zero_hides_for_many_batches_is_refused_when_it_shows(between):
    batch = data(176, neutral=168)
    capture = Capture(Net(between).eval(), lambda m, b: (m(b), b["y"]), part(batch, 0, 8))
    for start in range(0, 168, 8):
        rows(capture, part(batch, start, start + 8))
    with pytest.raises(CoverageError, match="mixes"):
        rows(capture, part(batch, 168, 176))


def test_a_loss_that_mixes_when_a_zero_no_longer_hides_it_is_refused():
    def loss(returned):
        losses = entropy(returned[:2])
        return losses * (1 + returned[2] * (returned[2] * losses).sum())

    batch = data(176, neutral=168)
    capture = Capture(
        Net(lambda z, f: z).eval(), lambda m, b: (m(b), b["y"], b["f"]), part(batch, 0, 8)
    )
    for start in range(0, 168, 8):
        rows(capture, part(batch, start, start + 8), loss)
    with pytest.raises(CoverageError, match="the loss of example"):
        rows(capture, part(batch, 168, 176), loss)
