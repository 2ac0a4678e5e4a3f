"""The damping rule: what the user gives, else what training implies, else a multiple of the spectrum."""

from collections.abc import Mapping
from typing import Any

from streamfluence.curvature.base import Curvature

# What stopping after T steps of rate r leaves is c / (r T). By layer, c = 0.61 is the least squares of
# 1 - exp(-x) against x / (x + c), equal weight to every octave of x. Jointly c = 2, with which the two
# agree to second order in x, up to a factor that no ranking sees: exact joint Gauss-Newton has an LDS
# of .777 .523 .883 .745 .800 with c = 1 on nets a, b, d, e1, e2 of the benchmark, of .790 .546 .882 .740
# .803 with c = 2, of .795 .554 .881 .721 .792 with c = 3.
EARLY_STOPPING = {"layer": 0.61, "joint": 2.0}


def resolve(
    options: Mapping[str, Any], name: str, curvature: Curvature, mean_square: float = 0.0
) -> tuple[float | None, str]:
    """Return the damping of every block (None: from each block's spectrum) and the rule in words.

    Weight decay is the exact second derivative of the penalty. Gradient descent of
    T steps at rate r has moved 1 - exp(-r T h) of the way along a direction of
    curvature h; a penalty of size c / (r T) allows h / (h + c / (r T)), and the two are
    close over all scales of h for some c of 0.6 to 2. Adam divides its steps by the root mean
    square of a batch's gradient, so the rate of a batch of B examples is r over
    sqrt(mean_square / B), if gradients of single examples are much larger than their mean.

    Args:
        options: The table ``curvature`` of a job.
        mean_square: Of the entries of an example's loss gradient, over examples and weights.

    Source:
        Gradient flow against ridge: Ali, Kolter and Tibshirani (2019), arXiv:1810.10082.
    """
    if name == "identity":
        return None, "none: no curvature"
    if options["damping"] != "auto":
        return float(options["damping"]), "given"
    decay, rate, steps = (options[key] for key in ("weight_decay", "learning_rate", "steps"))
    early = 0.0
    if rate and steps:
        early = EARLY_STOPPING[options["blocks"]] * _slowness(options, mean_square) / (rate * steps)
    if decay or early:
        terms = [f"weight decay {decay:g}"] if decay else []
        terms += [f"early stopping {early:.3g}"] if early else []
        return (decay or 0.0) + early, " + ".join(terms)
    return None, f"{curvature.default_scale:g} x the mean eigenvalue of each block's weights"


def _slowness(options: Mapping[str, Any], mean_square: float) -> float:
    """Return by what the optimizer divides its learning rate."""
    if options["optimizer"] == "adam":
        return (mean_square / options["batch_size"]) ** 0.5
    return 1 - options["momentum"]
