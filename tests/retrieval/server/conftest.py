"""An index and a server over it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llm2clip.retrieval.service.search_service import SearchService

from .serving import Served, running_server


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(tmp_path)


@pytest.fixture
def running(served: Served) -> Iterator[str]:
    """The address of a server on a free port."""
    with running_server(SearchService(served.path, served.encoder, served.settings)) as address:
        yield address
