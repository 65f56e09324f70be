"""Opens indexes wherever they are."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from llm2clip.indexer.core.address import Address
from llm2clip.indexer.core.errors import IndexerError
from llm2clip.indexer.core.searchable import SearchableIndex
from llm2clip.indexer.engines.remote_index import RemoteIndex
from llm2clip.indexer.engines.table import Table
from llm2clip.indexer.search.index import open_index

_ENGINES = {
    "lance": ("lancedb", "lance", "lance"),
    "postgresql": ("psycopg", "postgres", "postgres"),
    "milvus": ("pymilvus", "milvus", "milvus"),
}
"""Scheme -> package of the client, extra that installs it, and our module."""


def open_table(address: Address) -> Table:
    """Connect to the engine of an address.

    Raises:
        IndexerError: its client is not installed.
        EngineError: the engine cannot be reached.
    """
    package, extra, module = _ENGINES[address.scheme]
    os.environ.setdefault("LANCE_LOG", "error")  # or it warns of empty lists, one by one
    if find_spec(package) is None:
        raise IndexerError(f"{address} needs {package}: pip install 'llm2clip-retrieval[{extra}]'")
    return cast("Table", import_module(f"llm2clip.indexer.engines.{module}").connect(address))


def open_anywhere(place: Path | Address, *, device: str = "cpu") -> SearchableIndex:
    """Open the index in a folder, or at an address; errors as of ``open_index`` and ``open_table``."""
    if isinstance(place, Address):
        return RemoteIndex(open_table(place))
    return open_index(place, device=device)
