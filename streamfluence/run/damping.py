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


# Share of what stopping early leaves that is the same for every weight, though Adam's steps are not. LDS
# at 256 bytes of nets a, b, e2 is .802 .536 .807 with all of it, .814 .536 .816 with .3, .816 .534 .816
# with .2, .816 .532 .817 with .1; of net c .461 with all of it, .470 with .2.
EVEN = 0.2


def resolve(
    options: Mapping[str, Any], name: str, curvature: Curvature, mean_square: float = 0.0
) -> tuple[float | None, str]:
    """Return the damping of every block (None: from each block's spectrum) and the rule in words.

    Weight decay is the exact second derivative of the penalty. Gradient descent of
    T steps at rate r has moved 1 - exp(-r T h) of the way along a direction of
    curvature h; a penalty of size c / (r T) allows h / (h + c / (r T)), and the two are
    close over all scales of h for some c of 0.6 to 2. Adam divides its steps by the root mean
    square of a batch's gradient, so the rate of a batch of B examples is r over
    sqrt(mean_square / B), if gradients of single examples are much larger than their mean. It does so
    weight by weight: the damping returned is then a mean over weights, see ``share_by_weight``.

    Args:
        options: The table ``curvature`` of a job.
        mean_square: Of the entries of an example's loss gradient, over examples and weights.

    Source:
        Gradient flow against ridge: Ali, Kolter and Tibshirani (2019), arXiv:1810.10082.
    """
    if name == "identity":
        return None, "none: no curvature"
    if options["damping"] != "auto":
        return float(options["damping"]), "given" + spread(options)
    decay, early = options["weight_decay"] or 0.0, early_stopping(options, mean_square)
    if decay or early:
        terms = [f"weight decay {decay:g}"] if decay else []
        terms += [f"early stopping {early:.3g}"] if early else []
        return decay + early, " + ".join(terms) + spread(options)
    return None, f"{curvature.default_scale:g} x the mean eigenvalue of each block's weights"


def early_stopping(options: Mapping[str, Any], mean_square: float) -> float:
    """Return what stopping after so many steps leaves; 0 where rate or steps are not known."""
    rate, steps = options["learning_rate"], options["steps"]
    if not (rate and steps):
        return 0.0
    return EARLY_STOPPING[options["blocks"]] * _slowness(options, mean_square) / (rate * steps)


def by_weight(options: Mapping[str, Any]) -> bool:
    """Return whether the damping differs from weight to weight: training by Adam that stopped early."""
    told = options["optimizer"] == "adam" and options["learning_rate"] and options["steps"]
    return bool(told) and options["name"] != "identity"


def share_by_weight(options: Mapping[str, Any], mean_square: float) -> float:
    """Return the share of the damping that goes with the root mean square of a weight's gradient.

    Adam has gone as much less far as its steps were smaller. Weight decay is the same for every
    weight; and a given damping is shared out like the one that is implied.
    """
    early = early_stopping(options, mean_square)
    total = early + (options["weight_decay"] or 0.0)
    return (1 - EVEN) * early / total if total else 0.0


def spread(options: Mapping[str, Any]) -> str:
    """Return what a rule in words adds where its damping is a mean."""
    return ", a mean over weights" if by_weight(options) else ""


def _slowness(options: Mapping[str, Any], mean_square: float) -> float:
    """Return by what the optimizer divides its learning rate."""
    if options["optimizer"] == "adam":
        return (mean_square / options["batch_size"]) ** 0.5
    return 1 - options["momentum"]
