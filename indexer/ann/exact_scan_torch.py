"""Exact scan with torch, for GPUs that the installed FAISS cannot use. The float16 vectors lie on the device, in tiles.

Tiles are converted to float32 before they are compared: float16 products are too coarse to tell near rows apart.
"""

from __future__ import annotations

from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.ann.faiss_flat import SLACK, Found
from llm2clip.indexer.core.errors import IndexerError
from llm2clip.indexer.core.results import StoredVectors

TILE_ROWS = 65_536
"""Rows per tile: 64 MB of scores of 256 queries; at dimension 1,280, 336 MB of float32."""


@final
class TorchScan:
    """Scores every row on a torch device (``cuda``, ``cuda:1`` or ``cpu``)."""

    exact = True
    slack = SLACK

    def __init__(self, vectors: StoredVectors, *, device: str, tile_rows: int = TILE_ROWS) -> None:
        import torch

        self._torch, self._device = torch, torch.device(device)
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise IndexerError(
                f"there is no device {device}: torch {torch.__version__} sees no GPU. Search with --device cpu"
            )
        self.rows = len(vectors)
        self._tiles: list[tuple[int, Any]] = []
        try:
            for first, rows in vectors.blocks(tile_rows):
                self._tiles.append((first, torch.from_numpy(rows.copy()).to(self._device)))
        except torch.cuda.OutOfMemoryError as error:
            raise IndexerError(
                f"{self.rows:,} float16 vectors of dimension {vectors.dim} need "
                f"{self.rows * vectors.dim * 2 / 1e9:.1f} GB on {device}, which has less free. Search with --device cpu"
            ) from error

    def depth(self, k: int) -> int:
        """Candidates to re-rank for ``k`` hits."""
        return k + 8

    def candidates(
        self, queries: NDArray[np.float32], *, count: int, allowed: NDArray[np.bool_] | None
    ) -> Found:
        """The nearest allowed rows of each query, nearest first. Shapes: (n, dim) float32, (rows,) bool."""
        torch = self._torch
        with torch.inference_mode():
            asked = torch.from_numpy(np.ascontiguousarray(queries)).to(self._device)
            best = torch.full((len(queries), count), -torch.inf, device=self._device)
            ids = torch.full((len(queries), count), -1, dtype=torch.int64, device=self._device)
            for first, tile in self._tiles:
                scores = asked @ tile.float().T
                if allowed is not None:
                    here = torch.tensor(allowed[first : first + len(tile)]).to(self._device)
                    scores = scores.masked_fill(~here, -torch.inf)
                found, columns = scores.topk(min(count, len(tile)), dim=1)
                best = torch.cat([best, found], dim=1)
                ids = torch.cat([ids, columns + first], dim=1)
                best, order = best.topk(count, dim=1)
                ids = ids.gather(1, order)
            ids = ids.masked_fill(best == -torch.inf, -1)
            return best.cpu().numpy(), ids.cpu().numpy()
