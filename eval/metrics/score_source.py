"""The two ways to hand scores to a metric: embeddings, or a matrix of scores."""

from __future__ import annotations

from llm2clip.eval.metrics.blockwise_scores import Embeddings, MatrixSource, ProductSource, Scores, Source


def source_of(scores: Scores | Embeddings) -> Source:
    """The right source for a matrix or for vectors."""
    if isinstance(scores, Embeddings):
        if scores.device is None:
            return ProductSource(scores)
        from llm2clip.eval.metrics.blockwise_scores_torch import TorchSource

        return TorchSource(scores)
    return MatrixSource(scores)
