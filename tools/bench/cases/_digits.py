"""Handwritten digits of scikit-learn: 1,437 training images and 360 queries, pixels 0..1."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from cases.base import Split


def digits(split_seed: int = 0) -> Split:
    """Return a stratified split, the same for everyone; fields ``x`` (64 pixels) and ``y``."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    train_x, query_x, train_y, query_y = train_test_split(
        images, labels, test_size=360, random_state=split_seed, stratify=labels
    )
    return Split({"x": train_x, "y": train_y}, {"x": query_x, "y": query_y})
