"""Inner products in float64 on a torch device; the counterpart of the NumPy code in ``blockwise_scores``."""

from __future__ import annotations

from typing import final

import numpy as np
import torch

from llm2clip.eval.metrics.blockwise_scores import (
    PIECE_NUMBERS,
    Block,
    Embeddings,
    Indices,
    Scores,
    ScoreSource,
    not_finite,
)


@final
class TorchBlock(Block):
    """A block on the device."""

    def __init__(self, values: torch.Tensor, start: int) -> None:
        self._values = values
        if not bool(torch.isfinite(values).all()):
            row, column = torch.nonzero(~torch.isfinite(values))[0].tolist()
            raise not_finite(values[row, column].item(), query=start + row, answer=column)

    def put(self, rows: Indices, columns: Indices, scores: Scores) -> None:
        """See :class:`Block`."""
        at = tuple(torch.from_numpy(index).to(self._values.device) for index in (rows, columns))
        self._values[at] = torch.from_numpy(scores).to(self._values.device)

    def count(self, lines: Indices, limits: Scores, *, axis: int) -> tuple[Indices, Indices]:
        """See :class:`Block`."""
        values, device = self._values, self._values.device
        if len(lines) < values.shape[1 - axis]:
            values = values.index_select(1 - axis, torch.from_numpy(lines).to(device))
        limit = torch.from_numpy(limits).to(device).unsqueeze(axis)
        above, equal = ((values > limit).sum(dim=axis), (values == limit).sum(dim=axis))
        return above.cpu().numpy(), equal.cpu().numpy()

    def values(self) -> Scores:
        """See :class:`Block`."""
        return np.asarray(self._values.cpu().numpy())


@final
class TorchSource(ScoreSource):
    """Inner products on a torch device, where the gallery lies whole and queries a block at a time."""

    def __init__(self, given: Embeddings) -> None:
        assert given.device is not None
        self.shape = given.shape
        self._device = torch.device(given.device)
        self._texts = given.texts
        self._images = self._to_device(given.images)
        self._step = max(1, 4 * PIECE_NUMBERS // max(1, given.texts.shape[1]))

    def pairs(self, rows: Indices, columns: Indices) -> Scores:
        """See :class:`ScoreSource`."""
        scores = np.empty(len(rows), dtype=np.float32)
        for start in range(0, len(rows), self._step):
            part = slice(start, start + self._step)
            left = self._to_device(self._texts[rows[part]]).double()
            right = self._images[torch.from_numpy(columns[part]).to(self._device)].double()
            scores[part] = (left * right).sum(dim=1).float().cpu().numpy()
        return scores

    def block(self, start: int, stop: int) -> Block:
        """See :class:`ScoreSource`."""
        queries = self._to_device(self._texts[start:stop]).double()
        parts = [(queries @ part.double().T).float() for part in self._images.split(self._step)]
        return TorchBlock(torch.cat(parts, dim=1), start)

    def _to_device(self, vectors: Scores) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(vectors)).to(self._device)
