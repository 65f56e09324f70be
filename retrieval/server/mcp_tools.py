"""The index as tools for a language model, over the Model Context Protocol (``llm2clip-serve --mcp``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import Field

from llm2clip.retrieval.output.gallery import small_webp
from llm2clip.retrieval.query.expression import Term
from llm2clip.retrieval.ranking.options import SearchOptions

if TYPE_CHECKING:
    from llm2clip.indexer import Hit
    from llm2clip.retrieval.searcher import Searcher

_SIDE = 768
"""Longest side in pixels of an image that a model is shown."""
_INSTRUCTIONS = (
    "Searches a collection of images by meaning, in any language. Hits have an id, which read_item shows as an image "
    "and more_like_this searches with. A confidence near 0 says that a hit probably does not show what was asked for."
)

Limit = Annotated[int, Field(ge=1, le=50, description="How many images.")]
Where = Annotated[
    str | None,
    Field(
        description="A filter such as \"time >= '2024-05' AND width > height\"; fields: time, key, caption, width, "
        "height, size, meta.NAME."
    ),
]


def make_tools(searcher: Searcher) -> MCPServer:
    """A server with the tools ``search``, ``more_like_this`` and ``read_item`` over an open searcher."""
    server = MCPServer("llm2clip", instructions=_INSTRUCTIONS)
    reads = ToolAnnotations(read_only_hint=True, open_world_hint=False)

    def found(query: str | list[Term], *, limit: int, where: str | None) -> list[dict[str, Any]]:
        with _explained():
            page = searcher.find(query, options=SearchOptions(k=limit, where=where))
        return [_told(hit) for hit in page.hits]

    @server.tool(annotations=reads)
    def search(
        query: Annotated[
            str, Field(description='What an image shows, or an expression: "2*beach" - "people".')
        ],
        limit: Limit = 10,
        where: Where = None,
    ) -> list[dict[str, Any]]:
        """Find images by what they show, best first."""
        return found(query, limit=limit, where=where)

    @server.tool(annotations=reads)
    def more_like_this(
        item: Annotated[int, Field(ge=0, description="Id of an image found before.")],
        limit: Limit = 10,
        where: Where = None,
    ) -> list[dict[str, Any]]:
        """Find images similar to one of the collection, which is among them."""
        return found([Term(kind="item", value=str(item))], limit=limit, where=where)

    @server.tool(annotations=reads, structured_output=False)
    def read_item(
        item: Annotated[int, Field(ge=0, description="Id of an image found before.")],
    ) -> list[Any]:
        """What is known of an image, and the image itself, made smaller."""
        with _explained():
            hit = searcher.index.hit(item)
            if hit is None:
                raise ValueError(f"no image has the id {item}")
            return [_told(hit), Image(data=small_webp(searcher.read_image(hit), side=_SIDE), format="webp")]

    return server


@contextmanager
def _explained() -> Iterator[None]:
    """Tell the model what was wrong, such as where a filter has a mistake; of other errors it is told nothing."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ToolError(str(error)) from error


def _told(hit: Hit) -> dict[str, Any]:
    return {
        "id": hit.id,
        "path": hit.uri,
        "caption": hit.caption,
        "time": hit.time,
        "score": round(hit.score, 4),
        "confidence": None if hit.confidence is None else round(hit.confidence, 3),
        "metadata": dict(hit.metadata),
    }
