"""Stage 2 of nano in closed form: texts and codes of classes to one space, by regularised canonical correlation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Maps:
    """Linear maps of both sides: (x - mean) @ weight."""

    text_mean: Floats
    text: Floats
    """Shape: (text width, dim)."""
    image_mean: Floats
    image: Floats
    """Shape: (image width, dim)."""


def fit_maps(
    texts: NDArray[np.floating],
    images: NDArray[np.floating],
    *,
    weights: NDArray[np.floating],
    text_ridge: float,
    image_ridge: float,
    dim: int,
) -> Maps:
    """Maps under which weighted pairs correlate most; directions are scaled by the root of their correlation.

    Args:
        texts: Shape (pairs, text width).
        images: Shape (pairs, image width).
        weights: Weight of each pair. Shape: (pairs,).
        text_ridge: Added to the variances of texts, in multiples of their mean.
        image_ridge: The same of images.
        dim: Number of directions.
    """
    shares = (weights / weights.sum()).astype(np.float64)
    means = shares @ texts, shares @ images
    left, right = texts - means[0], images - means[1]
    whiten_left = _inverse_root(_covariance(left, left, shares), text_ridge)
    whiten_right = _inverse_root(_covariance(right, right, shares), image_ridge)
    u, correlations, vt = np.linalg.svd(whiten_left @ _covariance(left, right, shares) @ whiten_right)
    scale = np.sqrt(correlations[:dim])
    return Maps(means[0], whiten_left @ u[:, :dim] * scale, means[1], whiten_right @ vt[:dim].T * scale)


def _covariance(left: NDArray[np.floating], right: NDArray[np.floating], shares: Floats) -> Floats:
    result: Floats = (left * shares[:, None]).T.astype(np.float64) @ right
    return result


def _inverse_root(covariance: Floats, ridge: float) -> Floats:
    size = len(covariance)
    values, vectors = np.linalg.eigh(covariance + np.eye(size) * ridge * np.trace(covariance) / size)
    result: Floats = (vectors / np.sqrt(values.clip(1e-12))) @ vectors.T
    return result
