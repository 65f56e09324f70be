"""Packages that only some corpora need: a missing one is named with what installs it."""

from __future__ import annotations

from importlib.util import find_spec

from llm2clip.indexer.core.errors import CorpusError


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
