"""Regularised canonical correlation analysis: the linear maps whose outputs correlate most, without any training.

After Hotelling (1936) with the ridge of Vinod (1976). Everything in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class LinearMap:
    """x -> weight x + bias."""

    weight: Matrix
    """Shape: (dim, width)."""
    bias: Matrix
    """Shape: (dim,)."""

    def __call__(self, rows: Matrix) -> Matrix:
        """Shape: (n, width) -> (n, dim)."""
        return rows @ self.weight.T + self.bias


@dataclass(frozen=True)
class CanonicalMaps:
    """What was fitted."""

    image: LinearMap
    """Of image features."""
    text: LinearMap
    """Of text features."""
    correlations: Matrix
    """Regularised correlation of each pair of outputs before weighting, descending. Shape: (dim,)."""


class Moments:
    """Weighted means and covariances of pairs, gathered block by block so that all pairs never lie in memory."""

    def __init__(self, image_width: int, text_width: int) -> None:
        self.weight = 0.0
        self._sums = np.zeros(image_width), np.zeros(text_width)
        self._squares = np.zeros((image_width, image_width)), np.zeros((text_width, text_width))
        self._cross = np.zeros((image_width, text_width))

    def add(self, images: Matrix, texts: Matrix, weights: Matrix | None = None) -> None:
        """Add pairs. Shapes: (n, image_width), (n, text_width), (n,) of positive weights, 1 by default."""
        weights = np.ones(len(images)) if weights is None else np.asarray(weights, np.float64)
        images, texts = np.asarray(images, np.float64), np.asarray(texts, np.float64)
        self.weight += float(weights.sum())
        for side, total, square in zip((images, texts), self._sums, self._squares, strict=True):
            total += weights @ side
            square += (side * weights[:, None]).T @ side
        self._cross += (images * weights[:, None]).T @ texts

    def means(self) -> tuple[Matrix, Matrix]:
        """Of images and of texts."""
        return self._sums[0] / self.weight, self._sums[1] / self.weight

    def covariances(self) -> tuple[Matrix, Matrix, Matrix]:
        """Of images, of texts, and of images with texts."""
        image, text = self.means()
        return (
            self._squares[0] / self.weight - np.outer(image, image),
            self._squares[1] / self.weight - np.outer(text, text),
            self._cross / self.weight - np.outer(image, text),
        )


def fit_cca(
    moments: Moments, *, dim: int, image_ridge: float, text_ridge: float, power: float = 1.0
) -> CanonicalMaps:
    """The maps of both sides to ``dim`` canonical directions.

    Args:
        moments: Of the pairs.
        dim: Directions; no more than either side is wide.
        image_ridge: Added to the image covariance, in multiples of its mean variance.
        text_ridge: Added to the text covariance likewise.
        power: Both outputs of a direction are scaled by its correlation to half this power.

    Raises:
        ValueError: ``dim`` is too large, a ridge is negative, or there are fewer than two pairs.
    """
    image_cov, text_cov, cross = moments.covariances()
    widest = min(cross.shape)
    if not 1 <= dim <= widest:
        raise ValueError(
            f"a closed-form start has at most {widest} directions, as features are {cross.shape[0]} (images) and "
            f"{cross.shape[1]} (texts) wide; got dim {dim}"
        )
    if image_ridge < 0 or text_ridge < 0 or moments.weight <= 1:
        raise ValueError(
            f"expected ridges of at least 0 and two pairs or more, got {image_ridge}, {text_ridge}, {moments.weight}"
        )
    image_white, text_white = _whitening(image_cov, image_ridge), _whitening(text_cov, text_ridge)
    left, correlations, right = np.linalg.svd(image_white @ cross @ text_white)
    scale = correlations[:dim, None] ** (power / 2)
    image_mean, text_mean = moments.means()
    image = scale * (left[:, :dim].T @ image_white)
    text = scale * (right[:dim] @ text_white)
    return CanonicalMaps(
        image=LinearMap(image, -image @ image_mean),
        text=LinearMap(text, -text @ text_mean),
        correlations=correlations[:dim],
    )


def _whitening(covariance: Matrix, ridge: float) -> Matrix:
    """Inverse square root of a covariance with a ridge; directions without variance are left out."""
    size = len(covariance)
    regular = covariance + ridge * np.trace(covariance) / size * np.eye(size)
    values, vectors = np.linalg.eigh(regular)
    kept = values > 1e-10 * max(float(values[-1]), 1e-300)
    roots = np.where(kept, 1 / np.sqrt(np.where(kept, values, 1.0)), 0.0)
    return np.asarray((vectors * roots) @ vectors.T)
