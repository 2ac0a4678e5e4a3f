"""Empirical Fisher matrix: the second moment of the loss gradients themselves."""

from streamfluence.curvature._outer_products import OuterProducts


class Fisher(OuterProducts):
    """H = (1/n) sum_i g_i g_i^T with g_i the gradient of example i's loss."""

    source = "loss"
    default_scale = 0.3
