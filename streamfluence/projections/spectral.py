"""Spectral projection: the pairs of eigenvectors that hold most of whitened rows, each of one layer."""

from streamfluence.projections._pairs import Pairs


class Spectral(Pairs):
    """Features along the ``width`` best pairs of all layers, see ``Pairs`` for its options."""
