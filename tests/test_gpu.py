"""What is done otherwise on a GPU gives the numbers of the CPU; skipped where torch finds none."""

from types import MappingProxyType

import numpy as np
import pytest
import torch
from small_job import write_job
from torch import nn

import streamfluence
from streamfluence.capture import Block, Capture, Outer, Scales, dense_gradient
from streamfluence.capture.norm import Norm
from streamfluence.collecting import units as _collect_tasks
from streamfluence.linalg import is_half_on_gpu, symmetric_eigen, times_half
from streamfluence.projections._directions import Directions
from streamfluence.registry import member
from streamfluence.stages.run import run

on_gpu = pytest.mark.gpu


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(found, expected):
    return float((found.double().cpu() - expected).norm() / expected.norm())


@pytest.mark.parametrize(("device", "cost"), [("cpu", 16), ("cuda", 512)])
def test_pairs_are_gathered_where_that_costs_less_on_the_device(device, cost):
    """One pair is gathered from a rectangle just above what a gather costs, not from one below."""
    for columns in (cost, cost + 1):
        arrays = {
            "places": torch.tensor([[0, 0, 0]]),
            "energy": torch.ones(1),
            "left": random(1, 3, 1),
            "right": random(1, columns, columns),
        }
        directions = Directions(Block("b", ("b",), 1, 3, columns), arrays)
        assert directions._gathered(torch.device(device)) == (columns > cost)


@on_gpu
@pytest.mark.parametrize("shape", [(7, 33), (4, 1, 50, 769), (0, 5)])
def test_a_product_of_a_half_precision_side_is_that_of_float32(shape):
    side, matrix = random(*shape).cuda().bfloat16(), random(shape[-1], 41, seed=1).cuda()
    expected = side.double().cpu() @ matrix.double().cpu()
    found = times_half(side, matrix)
    assert is_half_on_gpu(side) and found.dtype == torch.float32 and found.shape == expected.shape
    assert not found.numel() or relative_error(found, expected) < 2e-5


class Net(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.first, self.norm = nn.Linear(20, 24, bias=bias), nn.LayerNorm(24)
        self.second = nn.Linear(24, 9)

    def forward(self, x):
        return self.second(self.norm(torch.tanh(self.first(x))))


def half_uses(bias, scaled):
    """The uses of a batch under autocast on a GPU, and their blocks."""
    torch.manual_seed(0)
    net = Net(bias).cuda().eval()
    x = random(6, 5, 20).cuda()

    def forward(model, batch):
        with torch.autocast("cuda", torch.bfloat16):
            return model(batch)

    capture = Capture(net, forward, x)
    scales = Scales()
    if scaled:
        sides = {
            b.name: (random(b.groups, b.left).exp().cuda(), random(b.groups, b.right).exp().cuda())
            for b in capture.blocks
        }
        scales = Scales(MappingProxyType(sides))
    with capture.record(x) as tape:
        losses = tape.returned.float().square().sum((1, 2))
        uses = scales.apply(tape.gradients(losses, torch.ones_like(losses), last=True))
    return {block: uses[block.name] for block in capture.blocks}


@on_gpu
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_thin_products_in_half_precision_are_those_of_the_gradient(bias, scaled):
    seen = 0
    for block, uses in half_uses(bias, scaled).items():
        for use in uses:
            if not isinstance(use, Outer):
                continue
            left, right = random(1, block.left, 4).cuda(), random(1, block.right, 3, seed=1).cuda()
            gradient = dense_gradient(block, [use]).double().cpu()
            expected = left.double().cpu().mT @ gradient @ right.double().cpu()
            assert use.half
            assert relative_error(use.float_on_demand().between(left, right), expected) < 2e-5
            seen += 1
    assert seen == 2


@on_gpu
@pytest.mark.parametrize("module", [nn.LayerNorm(6), nn.GroupNorm(2, 6), nn.BatchNorm1d(6)])
def test_the_scale_of_a_norm_has_the_gradient_of_the_cpu(module):
    shape = (5, 7, 6) if isinstance(module, nn.LayerNorm) else (5, 6, 7)
    inputs, gradient = random(*shape), random(*shape, seed=1)
    if not isinstance(module, nn.LayerNorm):
        inputs, gradient = inputs.unsqueeze(1), gradient.unsqueeze(1)
    here = Norm().weight(module.eval(), inputs, gradient, True).gradient
    there = Norm().weight(module.cuda(), inputs.cuda(), gradient.cuda(), True).gradient
    torch.testing.assert_close(there.cpu(), here, rtol=1e-5, atol=1e-5)


@on_gpu
def test_eigenvectors_of_a_gpu_have_the_signs_of_the_cpu():
    matrix = random(40, 40).double()
    matrix = matrix @ matrix.T
    here, there = symmetric_eigen(matrix), symmetric_eigen(matrix.cuda())
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(other.cpu(), one, rtol=1e-9, atol=1e-9)


@on_gpu
def test_a_run_on_a_gpu_has_the_scores_and_the_lists_of_the_cpu(tmp_path, device="cuda"):
    job = write_job(tmp_path / "job")
    exact = {"rows.codec": "float32", "rows.bytes": 0, "sketch.probes": "exact"}
    for name in ("cpu", device):
        run(job, str(tmp_path / name), {**exact, "compute.device": name})
    here, there = (streamfluence.open(tmp_path / name) for name in ("cpu", device))
    expected = here.scores().compute()
    difference = np.abs(there.scores().compute() - expected)
    assert difference.max() < 1e-4 * np.abs(expected).max()
    here, there = here.results(), there.results()
    for side in ("positive", "negative"):
        np.testing.assert_allclose(
            there[f"top_k.{side}_scores"], here[f"top_k.{side}_scores"], rtol=1e-3, atol=1e-9
        )
        listed, rows = (found[f"top_k.{side}_rows"] for found in (here, there))
        assert (listed[:, :10] == rows[:, :10]).mean() > 0.9


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])
@pytest.mark.parametrize("at_once", [1, 30, 10_000])
def test_rows_are_coded_in_their_order_however_many_wait(at_once, device, monkeypatch):
    monkeypatch.setattr(_collect_tasks, "CODED_AT_ONCE", at_once)
    kind = member("codecs", "int8")
    codec = kind(kind.allocate(torch.ones(6, dtype=torch.float64), None, 0)).to(device)
    batches = [random(size, 6, seed=size).to(device) for size in (16, 16, 5)]
    columns, coded = _collect_tasks._Columns(), _collect_tasks._Coded(codec)
    for batch in batches:
        coded.add(batch, columns)
    coded.flush(columns)
    expected = codec.encode(torch.cat(batches))
    np.testing.assert_array_equal(columns.finish()["rows"], expected.codes.cpu())
    assert coded.shares["rows"] in (16, 32, 37) and not coded._waiting
