"""Measuring encoders and indexes: metrics as pure functions, image and caption sets, the report on nano."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm2clip.eval.compare import compare_encoders
    from llm2clip.eval.datasets import CaptionedImages, read_captioned
    from llm2clip.eval.evaluation import evaluate
    from llm2clip.eval.leaderboard import build_board
    from llm2clip.eval.loaders.load import load_protocol
    from llm2clip.eval.loaders.own import data_languages, load_data
    from llm2clip.eval.metrics import (
        DirectionMetrics,
        Recall,
        RetrievalMetrics,
        Unmatched,
        retrieval_metrics,
    )
    from llm2clip.eval.protocols import Protocol, find_protocol, protocol_ids
    from llm2clip.eval.published import published_rows
    from llm2clip.eval.results import Result, read_results
    from llm2clip.eval.retrieval_set import ImageRef, RetrievalSet
    from llm2clip.eval.scoring import Embeddings
    from llm2clip.eval.standing import ByTies, Ranks, Ties

# Names are resolved on first use, so that importing the package costs nothing.
_HOMES = {
    "ByTies": "standing",
    "CaptionedImages": "datasets",
    "DirectionMetrics": "metrics",
    "Embeddings": "standing",
    "ImageRef": "retrieval_set",
    "Protocol": "protocols",
    "Ranks": "standing",
    "Recall": "metrics",
    "Result": "results",
    "RetrievalMetrics": "metrics",
    "RetrievalSet": "retrieval_set",
    "Ties": "standing",
    "Unmatched": "metrics",
    "build_board": "leaderboard",
    "compare_encoders": "compare",
    "data_languages": "loaders.own",
    "evaluate": "evaluation",
    "find_protocol": "protocols",
    "load_data": "loaders.own",
    "load_protocol": "loaders.load",
    "protocol_ids": "protocols",
    "published_rows": "published",
    "read_captioned": "datasets",
    "read_results": "results",
    "retrieval_metrics": "metrics",
}

__all__ = [
    "ByTies",
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
