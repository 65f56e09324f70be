"""The tools for language models, called through the official client."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from typing import Any

import pytest
from PIL import Image

from llm2clip.retrieval import Searcher

from .serving import Served

mcp = pytest.importorskip("mcp", reason="mcp is not installed")


def call(searcher: Searcher, name: str, **arguments: Any) -> Any:
    from llm2clip.retrieval.server.mcp_tools import make_tools

    async def called() -> Any:
        async with mcp.Client(make_tools(searcher)) as client:
            return await client.call_tool(name, arguments)

    return asyncio.run(called())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tools_search_find_similar_and_show(served: Served):
    with Searcher.open(served.path, encoder=served.encoder) as searcher:
        found = call(searcher, "search", query="red", limit=3, where="key > '05'")
        told = found.structured_content["result"]
        expected = searcher.find("red", options=_options(3, where="key > '05'"))
        assert [hit["id"] for hit in told] == [hit.id for hit in expected.hits]
        assert told[0]["caption"] == expected.hits[0].caption
        similar = call(searcher, "more_like_this", item=11, limit=2).structured_content["result"]
        assert similar[0]["id"] == 11
        about, image = call(searcher, "read_item", item=11).content
        assert json.loads(about.text)["caption"] == "colour number 11"
        with Image.open(io.BytesIO(base64.b64decode(image.data))) as opened:
            assert (opened.format, opened.size) == ("WEBP", (30, 20))
        missing = call(searcher, "read_item", item=999)
        assert missing.is_error
        assert "no image has the id 999" in missing.content[0].text


def _options(k: int, *, where: str) -> Any:
    from llm2clip.retrieval.ranking.options import SearchOptions

    return SearchOptions(k=k, where=where)
