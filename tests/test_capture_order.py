"""Models that sort, regroup, mix or hide something until later: exact rows, or a refusal, never others.

Planning sees the first examples, in which nothing may show: all texts equally long, no flag
set. Later batches then do what these models do. Every row that is accepted is compared with
one backward an example in float64.
"""

import os

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from per_example import by_parameter, one_backward_an_example
from torch import nn

from streamfluence.capture import Capture
from streamfluence.errors import CoverageError

LONG, WORDS, CLASSES = 6, 12, 3
EXAMPLES = int(os.environ.get("STREAMFLUENCE_EXAMPLES", "60"))


class Model(nn.Module):
    """Word vectors, two layers, and whatever a kind of model does between them."""

    def __init__(self, run):
        super().__init__()
        self.run = run
        self.e = nn.Embedding(WORDS, 4)
        self.a = nn.Linear(4, 5)
        self.h = nn.Linear(5, CLASSES)
        self.experts = nn.ModuleList(nn.Linear(5, 5) for _ in range(2))
        self.gru = nn.GRU(4, 5, batch_first=True)
        self.spare = nn.Parameter(torch.randn(5))
        self.twice = nn.Linear(5, 5)

    def forward(self, b):
        return self.run(self, b)


def pooled(m, x, n):
    """Mean over the words of each text, which are padded with word 0."""
    z = m.a(m.e(x)).tanh()
    mask = (torch.arange(x.shape[1])[None] < n[:, None]).unsqueeze(-1)
    return (z * mask).sum(1) / n[:, None]


def sorted_inside(m, b):
    order = b["n"].argsort(descending=True, stable=True)
    return m.h(pooled(m, b["x"][order], b["n"][order]))[order.argsort()]


def sorted_and_left(m, b):
    order = b["n"].argsort(descending=True, stable=True)
    return m.h(pooled(m, b["x"][order], b["n"][order]))


def turned_round(m, b):
    return m.h(pooled(m, b["x"].flip(0), b["n"].flip(0))).flip(0)


def ends_swapped(m, b):
    order = torch.arange(len(b["n"]))
    order[0], order[-1] = order[-1].clone(), order[0].clone()
    return m.h(pooled(m, b["x"][order], b["n"][order]))[order]


def rolled_by_content(m, b):
    shift = int(b["n"].sum()) % len(b["n"])
    return m.h(pooled(m, b["x"].roll(shift, 0), b["n"].roll(shift, 0))).roll(-shift, 0)


def permuted_by_a_matrix(m, b):
    order = b["n"].argsort(stable=True)
    matrix = torch.eye(len(order))[order]
    return matrix.T @ m.h(pooled(m, b["x"][order], b["n"][order]))


def stacked_one_by_one(m, b):
    order = b["n"].argsort(stable=True)
    out = m.h(pooled(m, b["x"][order], b["n"][order]))
    return torch.stack([out[int(place)] for place in order.argsort()])


def grouped_by_task(m, b):
    z = pooled(m, b["x"], b["n"])
    first, second = (b["f"] == 0).nonzero()[:, 0], (b["f"] == 1).nonzero()[:, 0]
    out = torch.cat([m.experts[0](z[first]), m.experts[1](z[second])])
    return m.h(out[torch.cat([first, second]).argsort()].tanh())


def one_layer_over_groups(m, b):
    order = torch.cat([(b["f"] == k).nonzero()[:, 0] for k in range(2)])
    return m.h(m.twice(pooled(m, b["x"], b["n"])[order]).tanh())[order.argsort()]


def unique_words(m, b):
    words, back = b["x"].unique(return_inverse=True)
    return m.h(m.a(m.e(words)).tanh()[back].mean(1))


def unpadded(m, b):
    mask = torch.arange(LONG)[None] < b["n"][:, None]
    z = m.a(m.e(b["x"][mask])).tanh()
    owner = torch.arange(len(b["n"])).repeat_interleave(b["n"])
    return m.h(z.new_zeros(len(b["n"]), 5).index_add(0, owner, z) / b["n"][:, None])


def unpadded_and_padded_again(m, b):
    mask = torch.arange(LONG)[None] < b["n"][:, None]
    z = m.a(m.e(b["x"][mask])).tanh()
    return m.h(z.new_zeros(*mask.shape, 5).index_put((mask,), z).sum(1))


def unpadded_and_split(m, b):
    mask = torch.arange(LONG)[None] < b["n"][:, None]
    z = m.a(m.e(b["x"][mask])).tanh()
    return m.h(torch.stack([part.mean(0) for part in z.split(b["n"].tolist())]))


def summed_by_a_matrix(m, b):
    mask = torch.arange(LONG)[None] < b["n"][:, None]
    z = m.a(m.e(b["x"][mask])).tanh()
    owner = torch.arange(len(b["n"])).repeat_interleave(b["n"])
    return m.h(F.one_hot(owner, len(b["n"])).T.to(z) @ z)


def packed(m, b):
    x = nn.utils.rnn.pack_padded_sequence(
        m.e(b["x"]), b["n"], batch_first=True, enforce_sorted=False
    )
    return m.h(m.gru(x)[1][-1])


def weight_used_later(m, b):
    z = m.twice(pooled(m, b["x"], b["n"])).tanh()
    if b["f"].any():
        z = torch.where(b["f"].bool()[:, None], F.linear(z, m.twice.weight), z)
    return m.h(z)


def weight_used_for_some(m, b):
    z = m.twice(pooled(m, b["x"], b["n"])).tanh()
    return m.h(torch.where(b["f"].bool()[:, None], F.linear(z, m.twice.weight), z))


def row_read_for_the_missing(m, b):
    z = m.e(b["x"])
    z = torch.where(b["f"].bool()[:, None, None], m.e.weight[0], z)
    return m.h(m.a(z).tanh().mean(1))


def spare_used_later(m, b):
    z = pooled(m, b["x"], b["n"]) * m.spare
    return m.h(z + b["f"][:, None] * m.spare.square() if b["f"].any() else z)


def mean_taken_later(m, b):
    z = pooled(m, b["x"], b["n"])
    return m.h(z - z.mean(0) if b["f"].any() else z)


def detached_mean_taken_later(m, b):
    z = pooled(m, b["x"], b["n"])
    return m.h(z - z.detach().mean(0) if b["f"].any() else z)


def mean_over_the_batch(m, b):
    z = pooled(m, b["x"], b["n"])
    return m.h(z - z.mean(0))


def routed(m, b):
    z = pooled(m, b["x"], b["n"])
    out = torch.zeros_like(z)
    for number, expert in enumerate(m.experts):
        chosen = (z[:, 0] > 0) == number
        out[chosen] = expert(z[chosen])
    return m.h(out)


def its_own_derivative(m, b):
    z = pooled(m, b["x"], b["n"]).detach().requires_grad_()
    return torch.autograd.grad(m.h(m.twice(z).tanh()).square().sum(), z, create_graph=True)[0]


def remembered(m, b):
    """A module keeps something that the model reads behind its back."""
    z = pooled(m, b["x"], b["n"])
    m.kept = m.twice(z).tanh()
    return m.h(z) + m.kept[:, :CLASSES]


def layer_called_again_if_any_asks(m, b):
    z = m.twice(pooled(m, b["x"], b["n"])).tanh()
    return m.h(m.twice(z).tanh() if b["f"].any() else z)


def by_lengths(b):
    return b["n"].argsort(stable=True)


def permuted_on_the_right(m, b):
    order = by_lengths(b)
    matrix = torch.eye(len(order))[order]
    return (m.h(pooled(m, b["x"][order], b["n"][order])).T @ matrix).T


def permuted_by_a_convolution(m, b):
    order = by_lengths(b)
    matrix = torch.eye(len(order))[order].T
    out = m.h(pooled(m, b["x"][order], b["n"][order]))
    return F.conv1d(out[None], matrix[:, :, None])[0]


def permuted_by_products(m, b):
    order = by_lengths(b)
    matrix = torch.eye(len(order))[order].T
    out = m.h(pooled(m, b["x"][order], b["n"][order]))
    return (matrix[:, :, None] * out[None]).sum(1)


def sorted_on_the_second_axis(m, b):
    order = by_lengths(b)
    z = m.a(m.e(b["x"][order].T)).tanh()
    mask = (torch.arange(z.shape[0])[:, None] < b["n"][order]).unsqueeze(-1)
    out = (z * mask).sum(0, keepdim=True) / b["n"][order][:, None]
    return m.h(out[:, order.argsort()])[0]


class Reorder(torch.autograd.Function):
    """A kernel of one's own: nothing of it is seen in the graph."""

    @staticmethod
    def forward(ctx, values, order):
        ctx.order = order
        return values[order]

    @staticmethod
    def backward(ctx, gradient):
        return gradient[ctx.order.argsort()], None


def sorted_by_a_kernel(m, b):
    order = by_lengths(b)
    out = m.h(pooled(m, b["x"][order], b["n"][order]))
    return Reorder.apply(out, order.argsort())


def half_detached(m, b):
    z = pooled(m, b["x"], b["n"])
    half = len(z) // 2
    return m.h(m.twice(torch.cat([z[:half].detach(), z[half:]])).tanh())


def missing_filled_with_the_mean(m, b):
    z = pooled(m, b["x"], b["n"])
    return m.h(torch.where(b["f"].bool()[:, None], z.detach().mean(0), z))


def last_word(m, b):
    """What classifiers on language models do; nothing is moved."""
    z = m.a(m.e(b["x"])).tanh()
    return m.h(z[torch.arange(len(b["n"])), b["n"] - 1])


KINDS = [
    sorted_inside, sorted_and_left, turned_round, ends_swapped, rolled_by_content,
    permuted_by_a_matrix, stacked_one_by_one, grouped_by_task, one_layer_over_groups, unique_words,
    unpadded, unpadded_and_padded_again, unpadded_and_split, summed_by_a_matrix, packed,
    weight_used_later, weight_used_for_some, row_read_for_the_missing, spare_used_later,
    mean_taken_later, detached_mean_taken_later, mean_over_the_batch, routed, its_own_derivative,
    remembered, layer_called_again_if_any_asks, last_word, permuted_on_the_right,
    permuted_by_a_convolution, permuted_by_products, sorted_on_the_second_axis, sorted_by_a_kernel,
    half_detached, missing_filled_with_the_mean,
]  # fmt: skip
REFUSED = (
    sorted_and_left, mean_taken_later, detached_mean_taken_later, mean_over_the_batch,
    layer_called_again_if_any_asks, missing_filled_with_the_mean,
)  # fmt: skip
# What a model of these kinds uses; the rest is frozen, as a job would have it.
USED = {
    its_own_derivative: "a e h twice",
    packed: "e gru h",
    **dict.fromkeys((grouped_by_task, routed), "e a h experts"),
    **dict.fromkeys((spare_used_later,), "e a h spare"),
}


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def data(count, seed, plain):
    """Return texts; the first ``plain`` are of full length and without a flag."""
    generator = torch.Generator().manual_seed(seed)
    late = torch.arange(count) >= plain
    n = torch.where(late, torch.randint(1, LONG + 1, (count,), generator=generator), LONG)
    x = torch.randint(1, WORDS, (count, LONG), generator=generator)
    x = torch.where(torch.arange(LONG)[None] < n[:, None], x, 0)
    f = torch.where(late, torch.randint(0, 2, (count,), generator=generator), 0)
    return {"x": x, "n": n, "f": f, "y": torch.randint(0, CLASSES, (count,), generator=generator)}


def forward(model, batch):
    outputs = model(batch)
    if model.run is sorted_and_left:
        return outputs, batch["y"][batch["n"].argsort(descending=True, stable=True)]
    return outputs, batch["y"]


def loss(returned):
    outputs, targets = returned
    if outputs.shape[1] != CLASSES:
        return outputs.sin().sum(1)
    return F.cross_entropy(outputs, targets, reduction="none")


def make(kind, seed):
    torch.manual_seed(seed)
    model = Model(kind).eval()
    used = USED.get(kind, "e a h twice" if "twice" in kind.__code__.co_names else "e a h").split()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.partition(".")[0] in used)
    return model


def cut(batch, start, stop):
    return {key: value[start:stop] for key, value in batch.items()}


def accepted_rows(model, capture, batch):
    with capture.record(batch) as tape:
        values = loss(tape.returned)
        uses = tape.gradients(values, torch.ones_like(values), last=True)
    return by_parameter(model, capture, uses)


def assert_right(model, batch, found):
    expected = one_backward_an_example(model, batch, forward, loss)
    for name, rows in expected.items():
        if name in found:
            error = (found[name] - rows).abs().max()
            assert error <= 1e-9 * rows.abs().max() + 1e-12, f"{name}: {error}"
        else:
            assert not rows.any(), f"{name} was left out, but has a gradient"


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 999),
    plain=st.sampled_from([0, 8, 16, 24]),
    size=st.integers(2, 12),
)
def test_rows_that_are_accepted_are_those_of_their_examples(kind, seed, plain, size):
    model, batch = make(kind, seed), data(16 + 3 * size, seed, plain)
    try:
        capture = Capture(model, forward, cut(batch, 0, 16))
        capture.check(cut(batch, 0, 16), loss)
    except CoverageError:
        return
    for start in range(0, 16 + 3 * size, size):
        part = cut(batch, start, start + size)
        try:
            found = accepted_rows(model, capture, part)
        except CoverageError:
            continue
        assert_right(model, part, found)


@pytest.mark.parametrize("plain", [0, 16])
@pytest.mark.parametrize("kind", [k for k in KINDS if k not in REFUSED], ids=lambda k: k.__name__)
def test_what_plain_autograd_can_follow_is_followed(kind, plain):
    model, batch = make(kind, 1), data(40, 1, plain)
    capture = Capture(model, forward, cut(batch, 0, 16))
    capture.check(cut(batch, 0, 8), loss)
    for start in range(0, 40, 8):
        part = cut(batch, start, start + 8)
        assert_right(model, part, accepted_rows(model, capture, part))


@pytest.mark.parametrize("kind", REFUSED, ids=lambda k: k.__name__)
@pytest.mark.parametrize("plain", [0, 16])
def test_what_has_no_gradient_of_its_own_is_refused(kind, plain):
    model, batch = make(kind, 1), data(40, 1, plain)
    with pytest.raises(CoverageError, match=r"order of the batch|mixes"):
        capture = Capture(model, forward, cut(batch, 0, 16))
        capture.check(cut(batch, 0, 16), loss)
        accepted_rows(model, capture, cut(batch, 16, 32))


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in REFUSED], ids=lambda k: k.__name__)
def test_another_order_of_the_examples_gives_the_same_rows_in_that_order(kind):
    model, batch = make(kind, 2), data(24, 2, 8)
    capture = Capture(model, forward, cut(batch, 0, 16))
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    part = cut(batch, 10, 20)
    rows = accepted_rows(model, capture, part)
    moved = accepted_rows(model, capture, {key: value[order] for key, value in part.items()})
    for name in rows:
        torch.testing.assert_close(moved[name], rows[name][order], rtol=1e-9, atol=1e-12)


def test_the_plain_way_is_not_left_without_need():
    model, batch = make(last_word, 0), data(24, 0, 0)
    capture = Capture(model, forward, cut(batch, 0, 16))
    accepted_rows(model, capture, cut(batch, 8, 24))
    assert not capture.announcements[1:] and not capture.one_by_one
