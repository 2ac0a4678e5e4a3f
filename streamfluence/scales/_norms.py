"""One over the norm of a row."""

import numpy as np

_SMALLEST = np.finfo(np.float32).tiny


def inverse_norm(square: np.ndarray) -> np.ndarray:
    """Return one over the root of squared norms, float32; 1 for a row of zeros.

    A square below float32's normal numbers has lost its digits, so its row counts as one of zeros:
    multiplied by 1, its scores are as good as 0.
    """
    normal = square >= _SMALLEST
    root = np.sqrt(np.where(normal, square, 1.0), dtype=np.float64)
    return (1.0 / root).astype(np.float32)
