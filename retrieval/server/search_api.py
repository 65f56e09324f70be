"""Searches, and the images of the index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Query, Response
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool

from llm2clip.retrieval.query.expression import Term, parse
from llm2clip.retrieval.query.languages import guess_language, language_warning
from llm2clip.retrieval.ranking.options import Page, SearchOptions
from llm2clip.retrieval.server.schemas import (
    FacetModel,
    FacetsAnswer,
    HeatAnswer,
    HitModel,
    ItemModel,
    ItemsAnswer,
    QueryModel,
    SearchAnswer,
    SearchRequest,
    decode_data_uri,
    unit,
)
from llm2clip.retrieval.service.search_service import SearchService

if TYPE_CHECKING:
    from llm2clip.indexer import Hit

ItemId = Annotated[int, Path(ge=0, lt=2**63, description="Id of an image, as in a hit.")]
Where = Annotated[str | None, Query(max_length=4_000, description="A filter.")]
"""Of a GET request: shorter than in a body, since a URL may have 64 KB."""

_SENT = "(the image sent)"
"""Name of the image that goes with a query without being named in it."""
_SIGNATURES = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
}
"""First bytes of formats that browsers show as images and never as anything else."""


def search_router(service: SearchService) -> APIRouter:
    """The routes of searches and images."""
    router = APIRouter()
    _add_search(router, service)
    _add_images(router, service)
    return router


def _add_search(router: APIRouter, service: SearchService) -> None:
    @router.post("/v1/search")
    async def search(request: SearchRequest) -> SearchAnswer:
        """Images nearest to a text, an image, an expression of both, or a vector."""
        took: dict[str, float] = {}
        terms = _terms(request)
        options = SearchOptions(
            k=request.limit,
            where=request.where,
            cursor=request.cursor,
            min_confidence=request.min_confidence,
            by=request.by,
            sort=request.sort,
            fold=request.fold,
            diverse=request.diverse,
            explain=request.explain,
        )
        vector = await _query_vector(service, request, terms, took)
        page = await service.search(vector, terms, options, took=took)
        notes = [*page.notes, *await run_in_threadpool(_notes, service, terms)]
        return _search_answer(_above(page, request.min_score), terms, notes=notes, took=took)

    @router.get("/v1/items")
    async def items(
        where: Where = None,
        limit: Annotated[int, Query(ge=1, le=1000, description="Images per page.")] = 60,
        cursor: Annotated[str | None, Query(max_length=200, description="From the page before.")] = None,
    ) -> ItemsAnswer:
        """The images that pass a filter, the newest first."""
        page = await run_in_threadpool(service.newest, limit=limit, where=where, cursor=cursor)
        return ItemsAnswer(
            items=[_item(hit) for hit in page.hits],
            total=page.total,
            next_cursor=page.cursor,
            generation=int(page.generation),
        )

    @router.get("/v1/facets")
    async def facets(where: Where = None) -> FacetsAnswer:
        """How many of the images that pass a filter are of each year, folder and type."""

        def counted() -> FacetsAnswer:
            with service.index() as index:
                found = index.facets(where=where)
            kinds = {
                kind: [FacetModel(value=one.value, count=one.count, where=one.where) for one in values]
                for kind, values in vars(found).items()
            }
            return FacetsAnswer(**kinds)

        return await run_in_threadpool(counted)

    @router.get("/v1/errors")
    async def errors(limit: Annotated[int, Query(ge=1, le=10_000)] = 100) -> dict[str, list[dict[str, str]]]:
        """Images of the corpus that could not be read, with reasons."""

        def listed() -> list[dict[str, str]]:
            with service.index() as index:
                return [{"key": row.key, "reason": row.reason} for row in index.errors(limit=limit)]

        return {"errors": await run_in_threadpool(listed)}


def _add_images(router: APIRouter, service: SearchService) -> None:
    @router.get("/v1/items/{item}")
    async def item(item: ItemId) -> ItemModel:
        """What the index knows about an image."""
        return _item(await run_in_threadpool(service.item, item))

    @router.post("/v1/items/{item}/heat")
    async def heat(item: ItemId, request: QueryModel) -> HeatAnswer:
        """Where an image matches a query, for encoders whose image tower has a grid of features."""
        vector = await _query_vector(service, request, _terms(request), {})
        return HeatAnswer(cosines=(await service.heat(item, vector)).tolist())

    @router.get("/v1/items/{item}/image", response_class=Response)
    async def image(item: ItemId) -> Response:
        """The image as it is in the corpus; formats that browsers do not show are a download."""
        data = await run_in_threadpool(service.image, item)
        kind = next((name for start, name in _SIGNATURES.items() if data.startswith(start)), None)
        if kind is None and data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            kind = "image/webp"
        headers = {
            "Content-Security-Policy": "default-src 'none'; sandbox",
            "Cache-Control": "private, max-age=60",
        }
        if kind is None:
            headers["Content-Disposition"] = "attachment"
        return Response(data, media_type=kind or "application/octet-stream", headers=headers)

    @router.get("/v1/items/{item}/thumbnail", response_class=Response)
    async def thumbnail(
        item: ItemId, size: Annotated[int, Query(ge=1, le=1280, description="Longest side in pixels.")] = 320
    ) -> Response:
        """The image as a small WebP."""
        data = await run_in_threadpool(service.thumbnail, item, side=size)
        return Response(data, media_type="image/webp", headers={"Cache-Control": "private, max-age=300"})


def _terms(request: QueryModel) -> tuple[Term, ...]:
    terms = parse(request.query) if request.query else ()
    return (*terms, Term(kind="image", value=_SENT)) if request.image is not None else terms


async def _query_vector(
    service: SearchService, request: QueryModel, terms: Sequence[Term], took: dict[str, float]
) -> NDArray[np.float32]:
    if request.vector is not None:
        return unit(request.vector)
    images = {name: decode_data_uri(uri) for name, uri in request.images.items()}
    if request.image is not None:
        images[_SENT] = decode_data_uri(request.image)
    return await service.vector(terms, images=images, took=took)


def _above(page: Page, min_score: float | None) -> Page:
    """The hits of a page of at least a score; it is the last if some are lower."""
    hits = [hit for hit in page.hits if min_score is None or hit.score >= min_score]
    return page if len(hits) == len(page.hits) else replace(page, hits=hits, cursor=None)


def _notes(service: SearchService, terms: Sequence[Term]) -> list[str]:
    """A sentence for each language of the query that the encoder was not trained on, and for each text that is long."""
    encoder = service.encoder
    texts = [term.value for term in terms if term.kind == "text"]
    notes = dict(filter(None, (language_warning(text, encoder.info) for text in texts)))
    limit = encoder.info.max_text_tokens
    long = [text for text in texts if 4 * len(text) > limit]
    counts = encoder.count_tokens(long) if long else []
    return [
        *notes.values(),
        *(
            f"a text of {count:,} tokens was read in parts, since {encoder.info.name} reads {limit} at once"
            for count in counts
            if count > limit
        ),
    ]


def _search_answer(
    page: Page, terms: Sequence[Term], *, notes: list[str], took: dict[str, float]
) -> SearchAnswer:
    return SearchAnswer(
        hits=[_hit(hit) for hit in page.hits],
        total=page.total,
        next_cursor=page.cursor,
        generation=int(page.generation),
        language=guess_language(" ".join(term.value for term in terms if term.kind == "text")),
        notes=notes,
        took_ms=took,
        explain=list(page.explanation) or None,
    )


def _fields(hit: Hit) -> dict[str, Any]:
    return {name: getattr(hit, name) for name in ItemModel.model_fields}


def _item(hit: Hit) -> ItemModel:
    return ItemModel(**_fields(hit))


def _hit(hit: Hit) -> HitModel:
    return HitModel(
        **_fields(hit),
        rank=hit.rank,
        score=hit.score,
        confidence=hit.confidence,
        duplicates=[_item(copy) for copy in hit.duplicates],
    )
