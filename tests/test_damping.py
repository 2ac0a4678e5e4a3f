"""The damping rule, from what a job says to the number every block gets."""

import pytest

from streamfluence.manifest import Curvature
from streamfluence.registry import member
from streamfluence.stages._damping import resolve


def rule(name="gauss_newton", **options):
    curvature = Curvature(name=name, **options)
    return resolve(vars(curvature), name, member("curvature", name)())


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


@pytest.mark.parametrize("name, scale", [("gauss_newton", 0.3), ("fisher", 0.1)])
@pytest.mark.parametrize("decay", [None, 0.0])
def test_without_any_of_these_each_blocks_own_spectrum_decides(name, scale, decay):
    assert rule(name, weight_decay=decay) == (None, f"{scale} x the mean eigenvalue of each block")
    assert member("curvature", name).default_scale == scale


def test_no_curvature_has_no_damping_whatever_is_given():
    assert rule("identity", damping=0.2) == (None, "none: no curvature")
