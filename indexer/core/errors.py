"""Errors of the indexer, each printed as one line by the commands."""

from __future__ import annotations

from importlib.util import find_spec


class IndexerError(ValueError):
    """An error about an index or a corpus that the user can fix; the message says how."""


class IndexNotFoundError(IndexerError):
    """There is no index in the folder, or only an unfinished build."""


class IndexDamagedError(IndexerError):
    """A file of the index is missing, cut short, altered, or belongs to another index."""


class IndexVersionError(IndexerError):
    """The index was written in a format that this release does not read."""


class EncoderMismatchError(IndexerError):
    """The index was built with another encoder, or other weights of it."""


class IndexConflictError(IndexerError):
    """The folder holds another index or other files, or another process is writing it."""


class CorpusError(IndexerError):
    """The corpus cannot be read, or has no readable image."""


class IndexWriteError(OSError):
    """The index cannot be written (disk full, no permission, read-only). What was written is kept."""


class FaissNotInstalledError(ImportError, IndexerError):
    """No FAISS wheel is installed."""


def require_extra(module: str, *, extra: str, what: str) -> None:
    """Refuse to continue without the module of an optional package that the extra installs."""
    if find_spec(module) is None:
        raise CorpusError(f"{what} needs {module}: pip install 'llm2clip-retrieval[{extra}]'")
