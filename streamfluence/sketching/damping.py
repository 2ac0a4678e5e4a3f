"""The damping rule: what the user gives, else what training implies, else a multiple of the spectrum."""

from streamfluence.curvature.base import Curvature
from streamfluence.job import Curvature as JobCurvature

# What stopping after T steps of rate r leaves is c / (r T). By layer, c = 0.61 is the least squares of
# 1 - exp(-x) against x / (x + c), equal weight to every octave of x. Jointly c = 2, with which the two
# agree to second order in x, up to a factor that no ranking sees. LDS of exact joint Gauss-Newton:
#              digits MLP   convolutional net   diabetes MLP   MLP under momentum   MLP under AdamW
#     c = 1          .777                .523           .883                 .745              .800
#     c = 2          .790                .546           .882                 .740              .803
#     c = 3          .795                .554           .881                 .721              .792
EARLY_STOPPING = {"layer": 0.61, "joint": 2.0}

# Share of what stopping early leaves that is the same for every weight, though Adam's steps are not. LDS
# at 256 bytes of the digits MLP, the digits convolutional net and the digits MLP under AdamW is .802 .536
# .807 with all of it, .814 .536 .816 with .3, .816 .534 .816 with .2, .816 .532 .817 with .1; of the code
# transformer .461 with all of it, .470 with .2.
EVEN = 0.2


def resolve(
    told: JobCurvature, name: str, curvature: Curvature, mean_square: float = 0.0
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
        told: The table ``curvature`` of a job.
        mean_square: Of the entries of an example's loss gradient, over examples and weights.

    Source:
        Ali, Kolter and Tibshirani, A Continuous-Time View of Early Stopping for Least Squares
        (2019), https://arxiv.org/abs/1810.10082.
    """
    if name == "identity":
        return None, "none: no curvature"
    if told.damping != "auto":
        return float(told.damping), "given" + told.spread
    decay, early = told.weight_decay or 0.0, early_stopping(told, mean_square)
    if decay or early:
        terms = [f"weight decay {decay:g}"] if decay else []
        terms += [f"early stopping {early:.3g}"] if early else []
        return decay + early, " + ".join(terms) + told.spread
    return None, f"{curvature.default_scale:g} x the mean eigenvalue of each block's weights"


def early_stopping(told: JobCurvature, mean_square: float) -> float:
    """Return what stopping after so many steps leaves; 0 where rate or steps are not known."""
    rate, steps = told.learning_rate, told.steps
    if not (rate and steps):
        return 0.0
    return EARLY_STOPPING[told.blocks] * _slowness(told, mean_square) / (rate * steps)


def share_by_weight(told: JobCurvature, mean_square: float) -> float:
    """Return the share of the damping that goes with the root mean square of a weight's gradient.

    Adam has gone as much less far as its steps were smaller. Weight decay is the same for every
    weight; and a given damping is shared out like the one that is implied.
    """
    early = early_stopping(told, mean_square)
    total = early + (told.weight_decay or 0.0)
    return (1 - EVEN) * early / total if total else 0.0


def _slowness(told: JobCurvature, mean_square: float) -> float:
    """Return by what the optimizer divides its learning rate."""
    if told.optimizer == "adam":
        assert told.batch_size, "a job without it is refused"
        return float((mean_square / told.batch_size) ** 0.5)
    return 1 - told.momentum
