"""What can go wrong with an index, each a class of its own: caught by name, printed as one line."""

from __future__ import annotations

from importlib.util import find_spec


class IndexerError(ValueError):
    """Anything about an index or a corpus that its user can put right; the message says how."""


class IndexNotFoundError(IndexerError):
    """There is no index at the place given, or only a build that has not finished."""


class IndexDamagedError(IndexerError):
    """A file of the index is missing, cut short, altered, or belongs to another index."""


class IndexVersionError(IndexerError):
    """The index was written in a format that this release does not read."""


class EncoderMismatchError(IndexerError):
    """The index was built with another encoder, or with other weights of the same one."""


class IndexConflictError(IndexerError):
    """The place is taken: by another corpus's index, by somebody's files, or by a build that is running."""


class CorpusError(IndexerError):
    """The corpus cannot be read, or holds no image that can."""


class IndexWriteError(OSError):
    """The index cannot be written: disk full, no permission, read-only. What was written is kept."""


class FaissNotInstalledError(ImportError, IndexerError):
    """No FAISS wheel is installed."""


def need(module: str, *, extra: str, what: str) -> None:
    """Make sure that an optional package is installed.

    Args:
        module: its import name.
        extra: the extra of this package that brings it.
        what: what needs it, for the message.

    Raises:
        CorpusError: it is not installed.
    """
    if find_spec(module) is None:
        raise CorpusError(f"{what} needs {module}: pip install 'llm2clip-retrieval[{extra}]'")
