"""Corpus -> index on disk -> neighbours. Knows vectors, ids and metadata; never a model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm2clip.indexer.build import build_index
    from llm2clip.indexer.compacting import compact_index
    from llm2clip.indexer.corpus import open_corpus
    from llm2clip.indexer.errors import (
        CorpusError,
        EncoderMismatchError,
        FaissNotInstalledError,
        IndexConflictError,
        IndexDamagedError,
        IndexerError,
        IndexNotFoundError,
        IndexVersionError,
        IndexWriteError,
    )
    from llm2clip.indexer.hits import Hit
    from llm2clip.indexer.records import Corpus, Record
    from llm2clip.indexer.removing import Selection, remove_pictures
    from llm2clip.indexer.reports import (
        BadPicture,
        BuildOptions,
        BuildReport,
        ChangeReport,
        CompactReport,
        IndexInfo,
        Progress,
    )
    from llm2clip.indexer.seam import EncoderIdentity, ImageEncoder, Prepared
    from llm2clip.indexer.search import Index, open_index
    from llm2clip.indexer.updating import add_pictures, update_index
    from llm2clip.indexer.verify import VerifyReport
    from llm2clip.indexer.where import Where, WhereError, compile_where

# Names are resolved on first use, so that importing the package costs nothing.
_HOMES = {
    "add_pictures": "updating",
    "BadPicture": "reports",
    "build_index": "build",
    "BuildOptions": "reports",
    "BuildReport": "reports",
    "ChangeReport": "reports",
    "compact_index": "compacting",
    "CompactReport": "reports",
    "compile_where": "where",
    "Corpus": "records",
    "CorpusError": "errors",
    "EncoderIdentity": "seam",
    "EncoderMismatchError": "errors",
    "FaissNotInstalledError": "errors",
    "Hit": "hits",
    "ImageEncoder": "seam",
    "Index": "search",
    "IndexConflictError": "errors",
    "IndexDamagedError": "errors",
    "IndexerError": "errors",
    "IndexInfo": "reports",
    "IndexNotFoundError": "errors",
    "IndexVersionError": "errors",
    "IndexWriteError": "errors",
    "open_corpus": "corpus",
    "open_index": "search",
    "Prepared": "seam",
    "Progress": "reports",
    "Record": "records",
    "remove_pictures": "removing",
    "Selection": "removing",
    "update_index": "updating",
    "VerifyReport": "verify",
    "Where": "where",
    "WhereError": "where",
}

__all__ = [
    "BadPicture",
    "BuildOptions",
    "BuildReport",
    "ChangeReport",
    "CompactReport",
    "Corpus",
    "CorpusError",
    "EncoderIdentity",
    "EncoderMismatchError",
    "FaissNotInstalledError",
    "Hit",
    "ImageEncoder",
    "Index",
    "IndexConflictError",
    "IndexDamagedError",
    "IndexInfo",
    "IndexNotFoundError",
    "IndexVersionError",
    "IndexWriteError",
    "IndexerError",
    "Prepared",
    "Progress",
    "Record",
    "Selection",
    "VerifyReport",
    "Where",
    "WhereError",
    "add_pictures",
    "build_index",
    "compact_index",
    "compile_where",
    "open_corpus",
    "open_index",
    "remove_pictures",
    "update_index",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
