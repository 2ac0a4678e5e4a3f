"""Per-example gradients of every layer type, shape and option, against one backward an example."""

import warnings
from functools import partial

import pytest
import torch
from per_example import assert_exact, forward, uses_of
from torch import nn
from torch.nn.utils import parametrizations

from streamfluence.capture import Capture

B = 4


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def exact(make, *shape, slow=False, batch=None):
    """Check one model with random parameters and statistics; ``slow`` if the fallback is expected."""
    model = make()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2.0)
    capture, found, left_out = assert_exact(
        model, torch.randn(B, *shape) if batch is None else batch
    )
    assert not left_out
    assert any("run again" in said for said in capture.announcements) == slow
    return capture, found


@pytest.mark.parametrize("middle", [(), (2,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_with_any_number_of_middle_axes(middle, bias):
    exact(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3, bias)), *middle, 5)


CONVOLUTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"dilation": 2, "padding": 2},
    {"groups": 2, "padding": 1},
    {"groups": 4, "bias": False},
    {"groups": 4, "stride": 3, "kernel_size": 2},
    {"padding": "same"},
    {"padding": "same", "dilation": 2, "kernel_size": 4},
    {"padding": "valid"},
    {"padding": 1, "padding_mode": "circular"},
    {"padding": 2, "padding_mode": "circular", "kernel_size": 2, "stride": 2},
    {"padding": 2, "padding_mode": "reflect", "stride": 2},
    {"padding": "same", "padding_mode": "reflect", "kernel_size": 4},
    {"padding": 1, "padding_mode": "replicate", "groups": 2},
]
UNEQUAL = {"padding": (2, 1, 0), "stride": (1, 2, 3), "kernel_size": (2, 3, 1)}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("options", [*CONVOLUTIONS, UNEQUAL], ids=str)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_convolutions_with_every_option(rank, options):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    options = {k: v[:rank] if isinstance(v, tuple) else v for k, v in options.items()}
    options = {"kernel_size": 3, **options}
    exact(
        lambda: nn.Sequential(kind(4, 8, **options), nn.Tanh(), kind(8, 2, 1)),
        4,
        *(9, 8, 7)[:rank],
    )


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("each_group", [False, True])
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_unfolded_inputs_times_a_matrix_need_no_unfolding(rank, options, each_group):
    kind = (nn.Conv1d, nn.Conv2d)[rank - 1]
    model = kind(4, 8, **{"kernel_size": 3, **options}).eval()
    batch = torch.randn(B, 4, *(9, 8)[:rank])
    capture = Capture(model, forward, batch)
    block, ((use,),) = capture.blocks[0], uses_of(capture, batch).values()
    shape = (block.groups, block.right, 3) if each_group else (block.right, 3)
    matrix = torch.randn(shape)
    torch.testing.assert_close(use.right_times(matrix), use.right @ matrix)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6, 3), (1, 6, 3)])
def test_inputs_with_a_one_times_a_matrix_need_no_copy(bias, shape):
    model, batch = nn.Linear(6 - bias, 4, bias=bias).eval(), torch.randn(B, 2, 6 - bias)
    capture = Capture(model, forward, batch)
    ((use,),) = uses_of(capture, batch).values()
    matrix = torch.randn(shape)
    torch.testing.assert_close(use.right_times(matrix), use.right @ matrix)


@pytest.mark.parametrize("kind, space", [(nn.ConvTranspose1d, (5,)), (nn.ConvTranspose2d, (5, 4))])
def test_transposed_convolutions_by_the_fallback(kind, space):
    exact(partial(kind, 4, 6, 3, stride=2, padding=1, groups=2), 4, *space, slow=True)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
@pytest.mark.parametrize("options", [{}, {"padding_idx": 2}], ids=str)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_embeddings_of_any_shape(shape, options, dtype):
    tokens = torch.randint(0, 7, (B, *shape), dtype=dtype)
    model = partial(nn.Sequential, nn.Embedding(7, 4, **options), nn.Tanh(), nn.Linear(4, 3))
    _, found = exact(model, batch=tokens)
    if options:
        assert not found["0.weight"][:, 2].any(), "the padding row has no gradient"


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("options", [{}, {"padding_idx": 1}], ids=str)
def test_embedding_bags_by_the_fallback(mode, options):
    tokens = torch.randint(0, 7, (B, 5))
    exact(partial(nn.EmbeddingBag, 7, 4, mode=mode, **options), batch=tokens, slow=True)


NORMS = [
    (partial(nn.LayerNorm, 6), (6,)),
    (partial(nn.LayerNorm, 6), (3, 2, 6)),
    (partial(nn.LayerNorm, (2, 3, 6)), (2, 3, 6)),
    (partial(nn.LayerNorm, (3, 6), eps=0.1), (2, 3, 6)),
    (partial(nn.LayerNorm, 6, bias=False), (3, 6)),
    (partial(nn.RMSNorm, 6), (3, 6)),
    (partial(nn.RMSNorm, (3, 6), eps=0.1), (2, 3, 6)),
    (partial(nn.GroupNorm, 2, 4), (4,)),
    (partial(nn.GroupNorm, 4, 4), (4, 5)),
    (partial(nn.GroupNorm, 2, 4, eps=0.1), (4, 3, 3)),
    (partial(nn.BatchNorm1d, 4), (4,)),
    (partial(nn.BatchNorm1d, 4, eps=0.1), (4, 5)),
    (partial(nn.BatchNorm2d, 4), (4, 3, 2)),
    (partial(nn.BatchNorm3d, 4), (4, 2, 3, 2)),
]


@pytest.mark.parametrize("kind, shape", NORMS, ids=str)
def test_norms_in_eval_mode(kind, shape):
    exact(lambda: nn.Sequential(kind(), nn.Tanh()), *shape)


@pytest.mark.parametrize(
    "kind, shape",
    [
        (partial(nn.InstanceNorm2d, 4, affine=True), (4, 3, 3)),
        (partial(nn.InstanceNorm1d, 4, affine=True, track_running_stats=True), (4, 5)),
        (partial(nn.SyncBatchNorm, 4), (4, 5)),
        (partial(nn.PReLU, 4), (4, 3)),
    ],
    ids=str,
)
def test_layers_without_a_rule_by_the_fallback(kind, shape):
    exact(lambda: nn.Sequential(kind(), nn.Tanh()), *shape, slow=True)


def test_a_norm_without_affine_part_is_no_obstacle():
    exact(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), 3, 5, 5)


class Recurrent(nn.Module):
    def __init__(self, kind, batch_first):
        super().__init__()
        self.cells = kind(4, 5, 2, batch_first=batch_first, bidirectional=True)
        self.batch_first = batch_first

    def forward(self, x):
        if self.batch_first:
            return self.cells(x)[0]
        return self.cells(x.transpose(0, 1))[0].transpose(0, 1)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_layers_by_the_fallback(kind, batch_first):
    exact(partial(Recurrent, kind, batch_first), 3, 4, slow=True)


class Attention(nn.Module):
    """Reads ``out_proj.weight`` without calling ``out_proj``, as torch's own attention does."""

    def __init__(self, batch_first):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=batch_first)
        self.head, self.batch_first = nn.Linear(6, 3), batch_first

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        mixed = self.attention(x, x, x, need_weights=False)[0]
        return self.head(mixed if self.batch_first else mixed.transpose(0, 1))


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_by_the_fallback(batch_first):
    exact(partial(Attention, batch_first), 5, 6, slow=True)


def test_a_transformer_layer_of_torch():
    layer = partial(nn.TransformerEncoderLayer, 8, 2, 16, batch_first=True)
    exact(lambda: nn.TransformerEncoder(layer(), 2), 5, 8, slow=True)


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrised_weights_by_the_fallback(kind):
    exact(lambda: getattr(parametrizations, kind)(nn.Linear(4, 4)), 2, 4, slow=True)


def test_the_old_weight_norm_by_the_fallback():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exact(lambda: nn.utils.weight_norm(nn.Conv1d(4, 3, 2)), 4, 5, slow=True)


class Conv1D(nn.Module):
    """The transposed linear layer of the transformers library."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.empty(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        size_out = (*x.size()[:-1], self.nf)
        x = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return x.view(size_out)


@pytest.mark.parametrize("middle", [(), (3,)])
def test_the_transposed_layer_of_transformers(middle):
    capture, _ = exact(lambda: nn.Sequential(Conv1D(6, 5), nn.Tanh(), Conv1D(2, 6)), *middle, 5)
    assert [(block.left, block.right) for block in capture.blocks] == [(6, 6), (2, 7)]


@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize(
    "kind, shape",
    [
        (partial(nn.Linear, 5, 5), (3, 5)),
        (partial(nn.Conv2d, 2, 2, 3), (2, 5, 5)),
        (partial(nn.LayerNorm, 5), (3, 5)),
        (partial(nn.BatchNorm2d, 2), (2, 3, 3)),
    ],
    ids=["linear", "conv", "layer_norm", "batch_norm"],
)
def test_a_frozen_half_of_a_layer_is_left_out_and_said(frozen, kind, shape):
    def make():
        layer = kind()
        getattr(layer, frozen).requires_grad_(False)
        return nn.Sequential(layer, nn.Tanh())

    capture, found = exact(make, *shape)
    assert set(found) == {"0.weight", "0.bias"} - {f"0.{frozen}"}
    assert f"frozen, left out: 0.{frozen}" in capture.announcements
