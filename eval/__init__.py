"""Measuring encoders and indexes: metrics as pure functions, image and caption sets, the report on nano."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm2clip.eval.datasets import CaptionedImages, read_captioned
    from llm2clip.eval.evaluation import evaluate
    from llm2clip.eval.metrics import (
        DirectionMetrics,
        Recall,
        RetrievalMetrics,
        Unmatched,
        retrieval_metrics,
    )
    from llm2clip.eval.standing import Embeddings, Ties

# Names are resolved on first use, so that importing the package costs nothing.
_HOMES = {
    "CaptionedImages": "datasets",
    "DirectionMetrics": "metrics",
    "Embeddings": "standing",
    "Recall": "metrics",
    "RetrievalMetrics": "metrics",
    "Ties": "standing",
    "Unmatched": "metrics",
    "evaluate": "evaluation",
    "read_captioned": "datasets",
    "retrieval_metrics": "metrics",
}

__all__ = [
    "CaptionedImages",
    "DirectionMetrics",
    "Embeddings",
    "Recall",
    "RetrievalMetrics",
    "Ties",
    "Unmatched",
    "evaluate",
    "read_captioned",
    "retrieval_metrics",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
