"""Case (g): an MLP of 109,386 weights on digits of 784 pixels, SGD with momentum and weight decay.

Scikit-learn's digits, enlarged, each three times in another position with other noise; no query is
a copy of a training digit. The damping is 26 times the mean curvature of all weights; that of
the other cases is 1 to 8 times.
"""

import numpy as np
from scipy import ndimage
from sklearn.datasets import load_digits

from cases.base import Case, Recipe, Split

SIDE, COPIES = 28, 3
N_DIGITS, N_QUERIES = 1500, 400  # of 1,797 digits, the first ones train


def large_digits() -> Split:
    """Return 4,500 training images and 400 queries, the same for everyone; pixels about 0..1."""
    images, labels = load_digits(return_X_y=True)
    random = np.random.default_rng(0)
    order = random.permutation(len(images))
    images, labels = images[order].reshape(-1, 8, 8) / 16, labels[order]
    large = [ndimage.zoom(image, SIDE / 8, order=1) for image in images]
    train, others = np.arange(N_DIGITS), np.arange(N_DIGITS, len(images))
    chosen = np.concatenate([np.tile(train, COPIES), np.resize(others, N_QUERIES)])
    x = np.stack([_distorted(large[one], random) for one in chosen]).reshape(len(chosen), -1)
    cut = COPIES * N_DIGITS
    return Split.of(x, labels[chosen], slice(cut), slice(cut, None))


def _distorted(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    turned = ndimage.rotate(image, random.uniform(-20, 20), reshape=False, order=1)
    moved = ndimage.shift(turned, random.uniform(-3, 3, 2), order=1)
    return (moved + random.normal(0, 0.08, moved.shape)).astype(np.float32)


CASE = Case(
    key="g",
    name="digits_large",
    title="MLP on digits of 784 pixels, SGD with momentum and weight decay",
    recipe=Recipe(
        optimizer="sgd",
        learning_rate=0.1,
        momentum=0.9,
        epochs=30,
        batch_size=64,
        weight_decay=5e-4,
        schedule="cosine",
        n_subsets=50,
        seeds=(0, 1),
        model_seeds=(100,),
    ),
    data=large_digits,
    # The library's rule: weight decay + 2 x (1 - momentum) / (mean rate x steps).
    dampings=(2.38e-3,),
    slow=True,
    models_at_once=5,
)
