"""The damping rule, from what a job says to the number every block gets."""

import pytest
import torch
from small_job import load, loss_gradients, write_job

from streamfluence.job import Curvature
from streamfluence.registry import member
from streamfluence.run.opened import OpenRun
from streamfluence.sketching.damping import resolve
from streamfluence.stages.run import run
from streamfluence.stages.sketch import describe


def rule(name="gauss_newton", blocks="layer", mean_square=0.0, **options):
    curvature = Curvature(name=name, blocks=blocks, **options)
    return resolve(curvature, name, member("curvature", name)(), mean_square)


@pytest.mark.parametrize("name", ["gauss_newton", "fisher"])
def test_what_the_user_gives_comes_before_everything(name):
    assert rule(name, damping=0.2, weight_decay=0.1, learning_rate=1.0, steps=3) == (0.2, "given")


def test_weight_decay_is_the_damping_when_it_is_known():
    assert rule(weight_decay=1e-3) == (1e-3, "weight decay 0.001")


def test_early_stopping_adds_its_constant_over_the_rate_times_the_steps():
    damping, words = rule(weight_decay=1e-3, learning_rate=0.1, steps=500)
    assert damping == pytest.approx(1e-3 + 0.61 / (0.1 * 500))
    assert words == "weight decay 0.001 + early stopping 0.0122"
    assert rule(learning_rate=0.1, steps=500)[0] == pytest.approx(0.0122)


def test_momentum_makes_the_rate_larger_and_the_damping_smaller():
    rate = 0.1 / (1 - 0.9)
    damping, _ = rule(learning_rate=0.1, steps=500, momentum=0.9)
    assert damping == pytest.approx(0.61 / (rate * 500))


@pytest.mark.parametrize("name, scale", [("gauss_newton", 1.0), ("fisher", 0.3)])
@pytest.mark.parametrize("decay", [None, 0.0])
def test_without_any_of_these_each_blocks_own_spectrum_decides(name, scale, decay):
    assert rule(name, weight_decay=decay) == (
        None,
        f"{scale:g} x the mean eigenvalue of each block's weights",
    )
    assert member("curvature", name).default_scale == scale


def test_no_curvature_has_no_damping_whatever_is_given():
    assert rule("identity", damping=0.2) == (None, "none: no curvature")


def test_jointly_stopping_early_counts_twice():
    assert rule(blocks="joint", learning_rate=0.1, steps=500)[0] == pytest.approx(2 / 50)


def test_adam_divides_its_rate_by_the_size_of_a_batchs_gradient():
    told = {"learning_rate": 1e-3, "steps": 400, "optimizer": "adam", "batch_size": 64}
    damping, words = rule(blocks="joint", mean_square=4e-4, weight_decay=1e-3, **told)
    assert damping == pytest.approx(1e-3 + 2 * (4e-4 / 64) ** 0.5 / 0.4)
    assert words == "weight decay 0.001 + early stopping 0.0125, a mean over weights"
    assert rule(damping=0.3, **told) == (0.3, "given, a mean over weights")


@pytest.mark.parametrize("scale, weights", [(1.0, 40), (0.3, 7)])
def test_the_mean_eigenvalue_is_over_all_weights_of_a_block(scale, weights):
    curvature = member("curvature", "gauss_newton")()
    curvature.default_scale = scale
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    state = curvature.update(curvature.empty([3, 1]), rows)
    factor = curvature.factor(state, 50, None, [weights, 1])
    squares = rows.double().square().mean(0)
    expected = [scale * float(squares[:3].sum()) / weights] * 3 + [scale * float(squares[3])]
    assert factor.damping.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["gauss_newton", "fisher"])
def test_adams_damping_follows_from_the_gradients_of_single_examples(tmp_path, name):
    job = write_job(tmp_path)
    told = {"optimizer": "adam", "learning_rate": 0.02, "steps": 150, "batch_size": 150}
    changes = {f"curvature.{key}": value for key, value in told.items()}
    changes |= {"curvature.name": name, "curvature.damping": "auto", "queries": {}}
    run(job, str(tmp_path / "run"), changes)
    module, x, y, _, _ = load(tmp_path)
    mean_square = float(loss_gradients(module, x, y).square().mean())
    expected = 0.61 * (mean_square / 150) ** 0.5 / 3
    blocks = describe(OpenRun.open(str(tmp_path / "run")))["checkpoints"][0]["blocks"]
    assert [block["damping"] for block in blocks] == pytest.approx([expected] * 2, rel=1e-4)


@pytest.mark.parametrize("projection", ["principal", "spectral"])
def test_the_guess_is_the_mean_of_all_curvature_however_few_directions_are_kept(
    tmp_path, projection
):
    job, found = write_job(tmp_path), []
    for width in (4, 100):
        changes = {"curvature.damping": "auto", "curvature.blocks": "joint"}
        changes |= {"projection.name": projection, "projection.width": width}
        run(job, str(tmp_path / f"run-{width}"), changes)
        found += describe(OpenRun.open(str(tmp_path / f"run-{width}")))["checkpoints"][0]["blocks"]
    few, every = found
    assert (few["width"], every["width"]) == (4, 53)
    assert every["damping"] == pytest.approx(every["mean_eigenvalue"], rel=1e-5)
    assert few["damping"] == pytest.approx(every["damping"], rel=1e-5)
