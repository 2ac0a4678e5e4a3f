"""A damping that goes with Adam's steps: scaled gradients, the squares behind them, scores in float64."""

import numpy as np
import pytest
import torch
from per_example import forward, uses_of
from small_job import _gauss_newton, load, loss_gradients, write_job
from torch import nn

import streamfluence
from streamfluence.capture import Capture, Outer, Scales, by_block, dense_gradient
from streamfluence.evaluation.pilot.examples import choose_pilot
from streamfluence.evaluation.pilot.reference import reference_scores
from streamfluence.features._mean_squares import MeanSquares
from streamfluence.registry import member
from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.run.opened import OpenRun
from streamfluence.run.session import open_session
from streamfluence.stages.repair import repair
from streamfluence.stages.run import run
from streamfluence.stages.score import score

ADAM = {"optimizer": "adam", "learning_rate": 0.02, "steps": 150, "batch_size": 150}
EXACT = {
    "projection.width": 53,
    "rows.codec": "float32",
    "rows.bytes": 0,
    "curvature.damping": "auto",
}


class Tied(nn.Module):
    """An embedding whose weight is the head's too: one-hot and outer uses of one block."""

    def __init__(self):
        super().__init__()
        self.token, self.norm = nn.Embedding(7, 4), nn.LayerNorm(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.token.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.norm(self.token(tokens))))


class Alone(nn.Module):
    """A parameter that no layer owns."""

    def __init__(self):
        super().__init__()
        self.gain, self.layer = nn.Parameter(torch.randn(5)), nn.Linear(5, 3)

    def forward(self, inputs):
        return self.layer(inputs * self.gain)


def captured(name):
    torch.manual_seed(0)
    models = {
        "mlp": (nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(4, 5)),
        "positions": (
            nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)),
            torch.randn(4, 2, 5),
        ),
        "convolution": (nn.Conv2d(4, 6, 3, groups=2, padding=1), torch.randn(4, 4, 5, 5)),
        "tied": (Tied(), torch.randint(0, 7, (4, 6))),
        "alone": (Alone(), torch.randn(4, 5)),
    }
    model, batch = models[name]
    capture = Capture(model.eval(), forward, batch)
    return model, capture, uses_of(capture, batch)


MODELS = ("mlp", "positions", "convolution", "tied", "alone")


def some_scales(capture):
    generator = torch.Generator().manual_seed(1)
    return Scales(
        {
            b.name: tuple(
                torch.rand(b.groups, side, generator=generator) + 0.5 for side in (b.left, b.right)
            )
            for b in capture.blocks
        }
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_scaled_gradient_is_the_gradient_times_the_factors_of_its_entries(name):
    _, capture, uses = captured(name)
    scales = some_scales(capture)
    scaled = scales.apply(uses)
    for block in capture.blocks:
        left, right = scales.sides[block.name]
        factors = torch.einsum("gl,gr->glr", left, right)
        expected = dense_gradient(block, uses[block.name]) * factors
        torch.testing.assert_close(dense_gradient(block, scaled[block.name]), expected)
        torch.testing.assert_close(scales.of_block(block), factors)
        for use in scaled[block.name]:
            if isinstance(use, Outer):
                thin = torch.randn(block.groups, block.right, 2)
                torch.testing.assert_close(use.right_times(thin), use.right @ thin)
                if block.groups == 1:
                    torch.testing.assert_close(use.right_times(thin[0]), use.right @ thin[0])


@pytest.mark.parametrize("name", MODELS)
def test_numbers_of_entries_come_back_by_parameter(name):
    model, capture, _ = captured(name)
    entries = {
        b.name: torch.randn(b.groups, b.left, b.right, dtype=torch.float64) for b in capture.blocks
    }
    found = capture.by_parameter(entries)
    for parameter, weight in model.named_parameters():
        assert found[parameter].shape == weight.shape
    named = dict(model.named_parameters())
    again = capture.whole({n: v for n, v in found.items() if n in named})
    for block in capture.blocks:
        torch.testing.assert_close(again[block.name][0].gradient[0], entries[block.name])


@pytest.mark.parametrize("name", MODELS)
def test_the_squares_of_a_block_are_exact_and_shared_out_by_row_and_column(name):
    _, capture, uses = captured(name)
    sums = MeanSquares(capture.blocks)
    state = sums.update(sums.update(sums.empty(), uses), uses)
    total = 0.0
    sides = by_block(capture.blocks, state["left"], state["right"])
    for number, block in enumerate(capture.blocks):
        squares = 2 * dense_gradient(block, uses[block.name]).double().square().sum(0)
        total += float(squares.sum())
        assert float(state["norm"][number]) == pytest.approx(float(squares.sum()), rel=1e-5)
        if name in ("mlp", "alone"):  # one position: nothing to neglect
            torch.testing.assert_close(sides[block.name][0], squares.sum(2), rtol=1e-4, atol=1e-9)
            torch.testing.assert_close(sides[block.name][1], squares.sum(1), rtol=1e-4, atol=1e-9)
    size = sum(block.size for block in capture.blocks)
    assert sums.mean_square(state, 8) == pytest.approx(total / 8 / size, rel=1e-5)


def test_positions_share_their_squares_one_by_one():
    _, capture, uses = captured("positions")
    sums = MeanSquares(capture.blocks)
    state = sums.update(sums.empty(), uses)
    (use,) = uses[capture.blocks[0].name]
    expected = torch.zeros(capture.blocks[0].left, capture.blocks[0].right)
    for left, right in zip(use.left.flatten(0, 2), use.right.flatten(0, 2), strict=True):
        expected += torch.outer(left, right).square()
    (left, right), _ = by_block(capture.blocks, state["left"], state["right"]).values()
    torch.testing.assert_close(left[0].float(), expected.sum(1))
    torch.testing.assert_close(right[0].float(), expected.sum(0))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.8])
def test_the_damping_keeps_its_mean_over_all_weights(name, share):
    _, capture, uses = captured(name)
    sums = MeanSquares(capture.blocks)
    state = sums.scales(sums.update(sums.empty(), uses), share)
    total = 0.0
    for sides in by_block(capture.blocks, state["left"], state["right"]).values():
        left, right = (side.double() for side in sides)
        damping = 1 / (left[:, :, None] * right[:, None, :]).square()
        total += float(damping.sum())
        if share == 0.0:
            torch.testing.assert_close(damping, torch.ones_like(damping))
    assert total == pytest.approx(sum(block.size for block in capture.blocks), rel=1e-5)


def test_a_layer_without_gradient_keeps_what_is_even():
    _, capture, uses = captured("mlp")
    sums = MeanSquares(capture.blocks)
    state = sums.update(sums.empty(), uses)
    for part in (state["norm"][1:], state["left"][6:], state["right"][6:]):
        part.zero_()  # of the second layer
    scales = sums.scales(state, 0.8)
    _, (left, right) = by_block(capture.blocks, scales["left"], scales["right"]).values()
    torch.testing.assert_close(left, torch.full((1, 3), 0.2**-0.5))
    torch.testing.assert_close(right, torch.ones(1, 7))


# --- scores, by another road in float64 ----------------------------------------------------------


def damping_by_loop(folder, mean, decay):
    """Return the damping of every weight, parameters in order, from one backward an example."""
    module, x, y, _, _ = load(folder)
    squares = loss_gradients(module, x, y).square().mean(0)
    early = 2 * float(squares.mean().sqrt()) / 150**0.5 / (0.02 * 150)
    share = 0.8 * early / (early + decay)
    mean = early + decay if mean is None else mean
    shapes = [tuple(weight.shape) for weight in module.parameters()]
    parts = squares.split([int(np.prod(shape)) for shape in shapes])
    layers = []
    for weight, bias in ((0, 1), (2, 3)):
        matrix = parts[weight].view(shapes[weight])
        layers.append(torch.cat([matrix, parts[bias][:, None]], 1))
    levels = [float(layer.mean().sqrt()) for layer in layers]
    sizes = [layer.numel() for layer in layers]
    level = sum(a * b for a, b in zip(levels, sizes, strict=True)) / sum(sizes)

    def mixed(value):
        return 1 - share + share * value

    found = []
    for layer, own in zip(layers, levels, strict=True):
        rows, columns = layer.sum(1).sqrt(), layer.sum(0).sqrt()
        part = torch.outer(mixed(rows / rows.mean()), mixed(columns / columns.mean()))
        part = mean * mixed(own / level) * part
        found += [part[:, :-1].flatten(), part[:, -1]]
    return torch.cat(found)


def dense(folder, damping):
    module, x, y, qx, qy = load(folder)
    g, q = loss_gradients(module, x, y), loss_gradients(module, qx, qy)
    matrix = _gauss_newton(module, x) + damping.diag()
    return (g @ torch.linalg.solve(matrix, q.T) / len(g)).numpy()


@pytest.mark.parametrize("decay, given", [(0.0, None), (0.003, None), (0.003, 0.02)])
def test_scores_are_the_dense_solve_with_a_damping_for_every_weight(tmp_path, decay, given):
    job = write_job(tmp_path)
    told = ADAM | {"weight_decay": decay, "blocks": "joint", "damping": given or "auto"}
    changes = EXACT | {f"curvature.{key}": value for key, value in told.items()}
    run(job, str(tmp_path / "run"), changes)
    opened = streamfluence.open(str(tmp_path / "run"))
    damping = damping_by_loop(tmp_path, given, decay)
    expected = dense(tmp_path, damping)
    found = opened.scores().compute()
    assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()
    even = dense(tmp_path, torch.full_like(damping, float(damping.mean())))
    assert np.abs(found - even).max() > 0.02 * np.abs(expected).max(), "as good as without"
    plan = streamfluence.stages.sketch.describe(OpenRun.open(str(tmp_path / "run")))["checkpoints"][
        0
    ]
    assert plan["blocks"][0]["damping"] == pytest.approx(float(damping.mean()), rel=1e-4)
    assert 0.1 < plan["damping_share_by_weight"] < 0.8 + 1e-9


def test_another_damping_when_scoring_is_the_mean_of_the_same_shape(tmp_path):
    job = write_job(tmp_path)
    told = ADAM | {"blocks": "joint", "damping": "auto"}
    run(job, str(tmp_path / "run"), EXACT | {f"curvature.{key}": v for key, v in told.items()})
    score(str(tmp_path / "run"), damping=0.5)
    opened = streamfluence.open(str(tmp_path / "run"))
    found = opened.scores(damping=0.5).compute()
    expected = dense(tmp_path, damping_by_loop(tmp_path, 0.5, 0.0))
    assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()
    record = opened.top("0", k=1, name="test-damping-0.5")["record"]
    assert record["damping_rule"] == "given when scoring, a mean over weights"
    assert record["damping_share_by_weight"] == pytest.approx(0.8)


def test_the_unprojected_reference_has_the_same_damping(tmp_path):
    job = write_job(tmp_path)
    told = ADAM | {"blocks": "joint", "damping": "auto"}
    run(job, str(tmp_path / "run"), EXACT | {f"curvature.{key}": v for key, v in told.items()})
    pilot = choose_pilot(open_session(str(tmp_path / "run"), "cpu"), 150, None, 7)
    damping = damping_by_loop(tmp_path, None, 0.0)
    session = open_session(str(tmp_path / "run"), "cpu")
    values = {"joint": float(damping.mean())}
    solver = member("solvers", "conjugate_gradients")(tolerance=1e-8)
    found = reference_scores(
        pilot, values, False, True, solver, [AtCheckpoint(session, 0).scales()]
    ).scores
    expected = dense(tmp_path, damping)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("stage", ["coverage", "scales"])
def test_what_is_read_after_the_plan_is_made_again_by_a_repair(tmp_path, stage):
    job, path = write_job(tmp_path), tmp_path / "run"
    run(job, str(path), EXACT | {f"curvature.{key}": value for key, value in ADAM.items()})
    before = streamfluence.stages.sketch.describe(OpenRun.open(str(path)))
    sides = AtCheckpoint(open_session(str(path), "cpu"), 0).scales().sides
    for damaged in (path / "parts" / "sketch" / "0" / stage).rglob("zarr.json"):
        damaged.write_bytes(b"{}")
    assert {"stage": f"sketch/0/{stage}", "partition": 0} in repair(str(path))["repaired"]
    assert streamfluence.stages.sketch.describe(OpenRun.open(str(path))) == before
    for name, again in AtCheckpoint(open_session(str(path), "cpu"), 0).scales().sides.items():
        assert all(map(torch.equal, again, sides[name]))
    assert repair(str(path))["repaired"] == []
