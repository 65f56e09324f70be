"""Corpus -> index on disk -> neighbours. Knows vectors, ids and metadata; never a model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm2clip.indexer.core.encoder_protocol import EncoderIdentity, ImageEncoder, Prepared
    from llm2clip.indexer.core.errors import (
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
    from llm2clip.indexer.core.results import (
        BadImage,
        BuildOptions,
        BuildReport,
        ChangeReport,
        CompactReport,
        Hit,
        IndexInfo,
        Progress,
    )
    from llm2clip.indexer.corpora.open import open_corpus
    from llm2clip.indexer.filters.compile import Where, WhereError, compile_where
    from llm2clip.indexer.lifecycle.build import build_index
    from llm2clip.indexer.lifecycle.compact import compact_index
    from llm2clip.indexer.lifecycle.remove import Selection, remove_images
    from llm2clip.indexer.lifecycle.update import add_images, update_index
    from llm2clip.indexer.records.record import Corpus, Record
    from llm2clip.indexer.search.index import Index, open_index
    from llm2clip.indexer.search.verify import VerifyReport

# Names are resolved on first use, so that importing the package costs nothing.
_HOMES = {
    "add_images": "lifecycle.update",
    "BadImage": "core.results",
    "build_index": "lifecycle.build",
    "BuildOptions": "core.results",
    "BuildReport": "core.results",
    "ChangeReport": "core.results",
    "compact_index": "lifecycle.compact",
    "CompactReport": "core.results",
    "compile_where": "filters.compile",
    "Corpus": "records.record",
    "CorpusError": "core.errors",
    "EncoderIdentity": "core.encoder_protocol",
    "EncoderMismatchError": "core.errors",
    "FaissNotInstalledError": "core.errors",
    "Hit": "core.results",
    "ImageEncoder": "core.encoder_protocol",
    "Index": "search.index",
    "IndexConflictError": "core.errors",
    "IndexDamagedError": "core.errors",
    "IndexerError": "core.errors",
    "IndexInfo": "core.results",
    "IndexNotFoundError": "core.errors",
    "IndexVersionError": "core.errors",
    "IndexWriteError": "core.errors",
    "open_corpus": "corpora.open",
    "open_index": "search.index",
    "Prepared": "core.encoder_protocol",
    "Progress": "core.results",
    "Record": "records.record",
    "remove_images": "lifecycle.remove",
    "Selection": "lifecycle.remove",
    "update_index": "lifecycle.update",
    "VerifyReport": "search.verify",
    "Where": "filters.compile",
    "WhereError": "filters.compile",
}

__all__ = [
    "BadImage",
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
    "add_images",
    "build_index",
    "compact_index",
    "compile_where",
    "open_corpus",
    "open_index",
    "remove_images",
    "update_index",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
