"""Measuring encoders and indexes: metrics as pure functions, image and caption sets, the report on nano."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm2clip.eval.datasets.protocols import Protocol, find_protocol, protocol_ids
    from llm2clip.eval.datasets.retrieval_set import ImageRef, RetrievalSet
    from llm2clip.eval.datasets.tar_images import CaptionedImages, read_captioned
    from llm2clip.eval.loaders.image_folder import data_languages, load_data
    from llm2clip.eval.loaders.load import load_protocol
    from llm2clip.eval.metrics.best_rank import Ranks, TieBounds, Ties
    from llm2clip.eval.metrics.blockwise_scores import Embeddings
    from llm2clip.eval.metrics.recall import (
        DirectionMetrics,
        Recall,
        RetrievalMetrics,
        Unmatched,
        retrieval_metrics,
    )
    from llm2clip.eval.report.compare import compare_encoders
    from llm2clip.eval.report.leaderboard import build_board
    from llm2clip.eval.results.published_numbers import published_rows
    from llm2clip.eval.results.records import Result
    from llm2clip.eval.results.validation import read_results
    from llm2clip.eval.runner.evaluate import evaluate

# Names are resolved on first use, so that importing the package costs nothing.
_HOMES = {
    "TieBounds": "metrics.best_rank",
    "CaptionedImages": "datasets.tar_images",
    "DirectionMetrics": "metrics.recall",
    "Embeddings": "metrics.best_rank",
    "ImageRef": "datasets.retrieval_set",
    "Protocol": "datasets.protocols",
    "Ranks": "metrics.best_rank",
    "Recall": "metrics.recall",
    "Result": "results.records",
    "RetrievalMetrics": "metrics.recall",
    "RetrievalSet": "datasets.retrieval_set",
    "Ties": "metrics.best_rank",
    "Unmatched": "metrics.recall",
    "build_board": "report.leaderboard",
    "compare_encoders": "report.compare",
    "data_languages": "loaders.image_folder",
    "evaluate": "runner.evaluate",
    "find_protocol": "datasets.protocols",
    "load_data": "loaders.image_folder",
    "load_protocol": "loaders.load",
    "protocol_ids": "datasets.protocols",
    "published_rows": "results.published_numbers",
    "read_captioned": "datasets.tar_images",
    "read_results": "results.validation",
    "retrieval_metrics": "metrics.recall",
}

__all__ = [
    "CaptionedImages",
    "DirectionMetrics",
    "Embeddings",
    "ImageRef",
    "Protocol",
    "Ranks",
    "Recall",
    "Result",
    "RetrievalMetrics",
    "RetrievalSet",
    "TieBounds",
    "Ties",
    "Unmatched",
    "build_board",
    "compare_encoders",
    "data_languages",
    "evaluate",
    "find_protocol",
    "load_data",
    "load_protocol",
    "protocol_ids",
    "published_rows",
    "read_captioned",
    "read_results",
    "retrieval_metrics",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
