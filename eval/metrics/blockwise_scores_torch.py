"""Inner products and their comparison on a torch device; the counterpart of the NumPy code in ``scoring``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from llm2clip.eval.metrics.blockwise_scores import (
    Block,
    Embeddings,
    Indices,
    Scores,
    Source,
    ThresholdCounts,
    checked_norms,
    rounding_share,
)

_PIECE_NUMBERS = 1 << 22


class TorchBlock(Block):
    """A block on the device."""

    def __init__(self, values: torch.Tensor, *, again: TorchSource | None = None, start: int = 0) -> None:
        self._values = values
        self._again = again
        self._start = start
        self._final: TorchBlock | None = None

    def weigh(
        self, lines: Indices, *, low: Scores, high: Scores, axis: int, list_up_to: int
    ) -> ThresholdCounts:
        """See :class:`Block`."""
        values = self._values
        device = values.device
        if len(lines) < values.shape[1 - axis]:
            values = values.index_select(1 - axis, torch.from_numpy(lines).to(device))
        lower, upper = (torch.from_numpy(limit).to(device).unsqueeze(axis) for limit in (low, high))
        over, from_low = values > upper, values >= lower
        above, reached = (mask.sum(dim=axis).cpu().numpy() for mask in (over, from_low))
        found = None
        if int(reached.sum()) - int(above.sum()) <= list_up_to:
            row, column = torch.nonzero(over ^ from_low, as_tuple=True)
            pair = (row.cpu().numpy(), column.cpu().numpy())
            found = pair if axis else (pair[1], pair[0])
        return ThresholdCounts(above=above, reached=reached, doubtful=found)

    def settled(self) -> Block:
        """See :class:`Block`."""
        if self._again is None:
            return self
        if self._final is None:
            self._final = TorchBlock(self._again.exact(self._start, self._start + len(self._values)))
        return self._final

    def values(self) -> Scores:
        """See :class:`Block`."""
        return np.asarray(self._values.cpu().numpy())


class TorchSource(Source):
    """Inner products on a torch device. The gallery lies there whole, queries a block at a time."""

    final = False

    def __init__(self, given: Embeddings) -> None:
        assert given.device is not None
        self.shape = given.shape
        self._device = torch.device(given.device)
        self._norms = checked_norms(given)
        self._share = rounding_share(given.texts.shape[1])
        self._texts = given.texts
        self._images = torch.from_numpy(np.ascontiguousarray(given.images)).to(self._device)
        self._single = self._images.float()

    def pairs(self, rows: Indices, columns: Indices) -> Scores:
        """See :class:`Source`."""
        scores = np.empty(len(rows), dtype=np.float32)
        step = max(1, _PIECE_NUMBERS // max(1, self._texts.shape[1]))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            left = self._on_device(self._texts[rows[part]]).double()
            right = self._images[torch.from_numpy(columns[part]).to(self._device)].double()
            scores[part] = (left * right).sum(dim=1).float().cpu().numpy()
        return scores

    def margin(self, index: Indices, *, axis: int) -> NDArray[np.float64]:
        """See :class:`Source`."""
        own, other = self._norms if axis else self._norms[::-1]
        return np.asarray(own[index] * (other.max() * self._share))

    def block(self, start: int, stop: int) -> Block:
        """See :class:`Source`."""
        with _full_single_precision():
            values = self._on_device(self._texts[start:stop]).float() @ self._single.T
        return TorchBlock(values, again=self, start=start)

    def exact(self, start: int, stop: int) -> torch.Tensor:
        """Final scores of a block, for where nearly all are doubtful. Shape: (stop - start, gallery)."""
        queries = self._on_device(self._texts[start:stop]).double()
        step = max(1, _PIECE_NUMBERS // max(1, queries.shape[1]))
        return torch.cat([(queries @ part.double().T).float() for part in self._images.split(step)], dim=1)

    def _on_device(self, vectors: Scores) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(vectors)).to(self._device)


@contextmanager
def _full_single_precision() -> Iterator[None]:
    """Whatever the process allows: TF32 rounds by more than the margin."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
