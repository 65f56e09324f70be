"""Vectors for tests of ANN indexes."""

import numpy as np

from .material import unit


def clustered(rows: int, dim: int, *, seed: int) -> np.ndarray:
    """Rows around fifty centres, the same ones for every seed. Shape: (rows, dim), float32, unit rows."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((50, dim))
    return unit(centres[random.integers(0, 50, rows)] + 0.8 * random.standard_normal((rows, dim)))
