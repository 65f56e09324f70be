"""What can go wrong with an index, each a class of its own: caught by name, printed as one line."""

from __future__ import annotations


class IndexProblem(ValueError):
    """Anything about an index or a corpus that its user can put right; the message says how."""


class IndexMissing(IndexProblem):
    """There is no index at the place given, or only a build that has not finished."""


class IndexDamaged(IndexProblem):
    """A file of the index is missing, cut short, altered, or belongs to another index."""


class IndexVersion(IndexProblem):
    """The index was written in a format that this release does not read."""


class EncoderMismatch(IndexProblem):
    """The index was built with another encoder, or with other weights of the same one."""


class IndexConflict(IndexProblem):
    """The place is taken: by another corpus's index, by somebody's files, or by a build that is running."""


class CorpusProblem(IndexProblem):
    """The corpus cannot be read, or holds no picture that can."""


class IndexUnwritable(OSError):
    """The index cannot be written: disk full, no permission, read-only. What was written is kept."""


class FaissMissing(ImportError, IndexProblem):
    """No FAISS wheel is installed."""
