"""A query in, ranked hits out: joins the encoders and an index; the ``llm2clip-search`` command."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm2clip.retrieval.searcher import Searcher as Searcher

__all__ = ["Searcher"]


def __getattr__(name: str) -> object:
    if name == "Searcher":
        from llm2clip.retrieval.searcher import Searcher

        return Searcher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
