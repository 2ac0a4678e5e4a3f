"""Generalised Gauss-Newton matrix, estimated from output-space probes.

The rows are gradients of probes: cotangents B e with e of random signs, or the
exact columns of B, where B B^T is the Hessian of the loss in the outputs. Their
outer products average to J^T S J. Signs take the place of sampled labels, whose
outer products have the same mean.
"""

from streamfluence.curvature._moments import Gram
from streamfluence.curvature._outer_products import OuterProducts


class GaussNewton(OuterProducts):
    """H = (1/n) sum_i J_i^T S_i J_i.

    Source:
        Martens, New Insights and Perspectives on the Natural Gradient Method,
        https://arxiv.org/abs/1412.1193.
    """

    source = "probes"
    row_moments = Gram()
    default_scale = 1.0
    without_outputs = ("fisher", {})
