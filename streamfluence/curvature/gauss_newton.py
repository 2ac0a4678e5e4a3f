"""Generalised Gauss-Newton matrix, estimated from output-space probes.

The rows are gradients of probes: cotangents B e with e of random signs, or the
exact columns of B, where B B^T is the Hessian of the loss in the outputs. Their
outer products average to J^T S J (METHODS of the package: Martens 2020,
arXiv:1412.1193, for the matrix; Rademacher probes instead of sampled labels).
"""

from streamfluence.curvature._gram import Gram


class GaussNewton(Gram):
    """H = (1/n) sum_i J_i^T S_i J_i."""

    source = "probes"
    default_scale = 1.0
