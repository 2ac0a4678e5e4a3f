"""The damping rule: what the user gives, else what training implies, else a multiple of the spectrum."""

from collections.abc import Mapping
from typing import Any

from streamfluence.curvature.base import Curvature


def resolve(
    options: Mapping[str, Any], name: str, curvature: Curvature
) -> tuple[float | None, str]:
    """Return the damping of every block (None: from each block's spectrum) and the rule in words.

    Weight decay is the exact second derivative of the penalty. Training that
    stopped after T steps of rate r damps directions flatter than about 1 / (r T)
    as if a penalty of that size were there.
    """
    if name == "identity":
        return None, "none: no curvature"
    if options["damping"] != "auto":
        return float(options["damping"]), "given"
    decay, rate, steps = (options[key] for key in ("weight_decay", "learning_rate", "steps"))
    early = 0.0
    if rate and steps:
        early = (1 - options["momentum"]) / (rate * steps)
    if decay or early:
        terms = [f"weight decay {decay:g}"] if decay else []
        terms += [f"early stopping {early:g}"] if early else []
        return (decay or 0.0) + early, " + ".join(terms)
    return None, f"{curvature.default_scale:g} x the mean eigenvalue of each block"
