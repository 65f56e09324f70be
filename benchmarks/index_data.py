"""Vectors to measure indexes with: clustered ones made up, and real CLIP vectors jittered up to any number.

Both come block by block as float16, the same for the same seed, with queries that are not among the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BLOCK = 16_384
_RANK = 64


@dataclass(frozen=True, kw_only=True)
class Collection:
    """A set of vectors and the queries asked of it."""

    name: str
    """What is printed about it."""
    rows: int
    """How many vectors."""
    dim: int
    """Their length."""
    queries: NDArray[np.float32]
    """To be asked. Shape: (n, dim), float32, unit rows."""
    tuning: NDArray[np.float32]
    """Others of the same kind, for finding parameters. Shape: (m, dim), float32, unit rows."""
    _block: _Synthetic | _Jittered

    def blocks(self) -> Iterator[NDArray[np.float16]]:
        """All rows, in blocks of (up to ``BLOCK``, dim), float16, unit rows."""
        for number, start in enumerate(range(0, self.rows, BLOCK)):
            random = np.random.default_rng([7, number])
            yield unit(self._block.draw(random, min(BLOCK, self.rows - start))).astype(np.float16)


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to length 1."""
    scaled: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return scaled


class _Synthetic:
    """Clusters of very unequal size in a space whose spectrum falls, as embeddings lie."""

    def __init__(self, clusters: int, dim: int) -> None:
        random = np.random.default_rng(11)
        falling = 1 / np.sqrt(1 + np.arange(_RANK, dtype=np.float32))
        self._axes = (random.standard_normal((_RANK, dim)) * falling[:, None]).astype(np.float32)
        self._centres = random.standard_normal((clusters, _RANK)).astype(np.float32)
        shares = 1 / (10 + np.arange(clusters, dtype=np.float64))
        self._edges = np.cumsum(shares / shares.sum())

    def draw(self, random: np.random.Generator, count: int) -> NDArray[np.float32]:
        chosen = np.searchsorted(self._edges, random.random(count)).clip(max=len(self._edges) - 1)
        latent = self._centres[chosen] + 0.5 * random.standard_normal((count, _RANK), dtype=np.float32)
        noise = random.standard_normal((count, self._axes.shape[1]), dtype=np.float32)
        found: NDArray[np.float32] = latent @ self._axes + 0.3 * noise
        return found


class _Jittered:
    """Real vectors, each moved by differences of other real ones: the spread and the spectrum stay theirs."""

    def __init__(self, real: NDArray[np.float32]) -> None:
        self._real = unit(real)

    def draw(self, random: np.random.Generator, count: int) -> NDArray[np.float32]:
        real, (a, b, c, d, e) = self._real, random.integers(0, len(self._real), (5, count))
        moved = 0.35 * (real[b] - real[c]) + 0.25 * (real[d] - real[e])
        noise = random.standard_normal((count, real.shape[1]), dtype=np.float32)
        found: NDArray[np.float32] = real[a] + moved + 0.004 * noise
        return found


def synthetic(rows: int, dim: int) -> Collection:
    """Clustered vectors; the queries are drawn as the rows are."""
    source = _Synthetic(max(50, rows // 200), dim)
    drawn = unit(source.draw(np.random.default_rng([8, rows]), 2_000))
    return Collection(
        name=f"clustered {rows:,} x {dim}",
        rows=rows,
        dim=dim,
        queries=drawn[:1000],
        tuning=drawn[1000:],
        _block=source,
    )


def clip(rows: int, folder: Path) -> Collection | None:
    """Jittered CLIP vectors of photographs; the queries are the real vectors of captions. None if not there.

    Args:
        rows: how many.
        folder: holds ``val_image.npy`` and ``val_text_caption0.npy``, (n, dim) float32.
    """
    if not (folder / "val_image.npy").exists():
        return None
    real = np.load(folder / "val_image.npy").astype(np.float32)
    texts = unit(np.load(folder / "val_text_caption0.npy").astype(np.float32))
    return Collection(
        name=f"CLIP, jittered {rows:,} x {real.shape[1]}",
        rows=rows,
        dim=real.shape[1],
        queries=texts[::2],
        tuning=texts[1::2],
        _block=_Jittered(real),
    )
