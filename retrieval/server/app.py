"""The HTTP API as an ASGI application."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

from llm2clip.common.files import versions
from llm2clip.retrieval.query.expression import Term, parse
from llm2clip.retrieval.query.languages import language_warning
from llm2clip.retrieval.server.batching import OverloadedError
from llm2clip.retrieval.server.guard import Guard, error_body
from llm2clip.retrieval.server.schemas import (
    MOST_INPUTS,
    EmbeddingAnswer,
    EmbeddingRequest,
    EmbeddingRow,
    HitModel,
    ModelCard,
    ModelList,
    SearchAnswer,
    SearchRequest,
    Usage,
    decode_data_uri,
)
from llm2clip.retrieval.server.service import NoSuchItemError, Page, SearchService

ItemId = Annotated[int, Path(ge=0, lt=2**63, description="Id of an image, as in a hit.")]

_PAGE = {"page.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_SIGNATURES = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
}
"""First bytes of formats that browsers show as images and never as anything else."""


def make_app(service: SearchService) -> Guard:
    """The server of one index; its guard outside, so that nothing is parsed of a request that is refused."""
    from fastapi.routing import APIRoute

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    def name_of(route: APIRoute) -> str:
        return route.name

    app = FastAPI(
        title="llm2clip",
        summary="Search images by meaning.",
        version=versions(("llm2clip-retrieval",))["llm2clip-retrieval"],
        docs_url=None,  # its page loads scripts of other hosts
        redoc_url=None,
        lifespan=lifespan,
        generate_unique_id_function=name_of,
        responses={code: {"description": text} for code, text in _ERRORS.items()},
    )
    _add_errors(app)
    _add_search(app, service)
    _add_embeddings(app, service)
    _add_health(app, service)
    _add_page(app)
    return Guard(app, settings=service.settings, telemetry=service.telemetry)


_ERRORS = {
    400: "The request is invalid",
    401: "No token, or a wrong one",
    404: "There is no such image",
    408: "It took too long",
    413: "The request is too large",
    429: "Too many requests wait",
}


def _add_search(app: FastAPI, service: SearchService) -> None:
    @app.post("/v1/search")
    async def search(request: SearchRequest) -> SearchAnswer:
        """Images nearest to a text, an image, an expression of both, or a vector."""
        took: dict[str, float] = {}
        terms = _terms(request)
        vector = await _query_vector(service, request, terms, took)
        page = await run_in_threadpool(
            service.search,
            vector,
            limit=request.limit,
            where=request.where,
            cursor=request.cursor,
            min_score=request.min_score,
            took=took,
        )
        explained = None
        if request.explain:
            explained = await run_in_threadpool(_explain, service, terms, request.where)
        return _search_answer(page, took, _notes(service, terms), explained)

    @app.get("/v1/items/{item}")
    async def item(item: ItemId) -> HitModel:
        """What the index knows about an image."""
        return _hit(await run_in_threadpool(service.item, item))

    @app.get("/v1/items/{item}/image", response_class=Response)
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

    @app.get("/v1/items/{item}/thumbnail", response_class=Response)
    async def thumbnail(
        item: ItemId, size: Annotated[int, Query(ge=1, le=1280, description="Longest side in pixels.")] = 320
    ) -> Response:
        """The image as a small WebP."""
        data = await run_in_threadpool(service.thumbnail, item, side=size)
        return Response(data, media_type="image/webp", headers={"Cache-Control": "private, max-age=300"})

    @app.get("/v1/errors")
    async def errors(limit: Annotated[int, Query(ge=1, le=10_000)] = 100) -> dict[str, list[dict[str, str]]]:
        """Images of the corpus that could not be read, with reasons."""

        def listed() -> list[dict[str, str]]:
            with service.index() as index:
                return [{"key": row.key, "reason": row.reason} for row in index.errors(limit=limit)]

        return {"errors": await run_in_threadpool(listed)}


_SENT = "(the image sent)"
"""Name of the image that goes with a query without being named in it."""


def _terms(request: SearchRequest) -> tuple[Term, ...]:
    terms = parse(request.query) if request.query else ()
    return (*terms, Term(kind="image", value=_SENT)) if request.image is not None else terms


async def _query_vector(
    service: SearchService, request: SearchRequest, terms: Sequence[Term], took: dict[str, float]
) -> NDArray[np.float32]:
    if request.vector is not None:
        return _unit(request.vector)
    images = {name: decode_data_uri(uri) for name, uri in request.images.items()}
    if request.image is not None:
        images[_SENT] = decode_data_uri(request.image)
    return await service.vector(terms, images=images, took=took)


def _unit(values: list[float]) -> NDArray[np.float32]:
    vector = np.asarray(values, dtype=np.float64)
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or length == 0:
        raise ValueError("vector must have a finite length above 0")
    return (vector / length).astype(np.float32)


def _notes(service: SearchService, terms: Sequence[Term]) -> list[str]:
    """A sentence for each language of the query that the encoder was not trained on."""
    found = (language_warning(term.value, service.encoder.info) for term in terms if term.kind == "text")
    return list(dict(note for note in found if note is not None).values())


def _search_answer(
    page: Page, took: dict[str, float], notes: list[str], explained: list[str] | None
) -> SearchAnswer:
    return SearchAnswer(
        hits=[_hit(hit) for hit in page.hits],
        total=page.total,
        next_cursor=page.cursor,
        generation=page.generation,
        took_ms=took,
        notes=notes,
        explain=explained,
    )


def _hit(hit: Any) -> HitModel:  # noqa: ANN401 - Hit is imported late elsewhere
    fields = {name: getattr(hit, name) for name in HitModel.model_fields}
    return HitModel(**fields)


def _explain(service: SearchService, terms: Sequence[Term], where: str | None) -> list[str]:
    said = [f"{term.weight:+g} x {term.kind} {term.value[:200]!r}" for term in terms]
    with service.index() as index:
        return said + index.explain(where=where)


def _add_embeddings(app: FastAPI, service: SearchService) -> None:
    @app.post("/v1/embeddings")
    async def embeddings(request: EmbeddingRequest) -> EmbeddingAnswer:
        """Unit vectors of texts and of images (data URIs), in the shape of OpenAI's API."""
        inputs = [request.input] if isinstance(request.input, str) else list(request.input)
        if len(inputs) > MOST_INPUTS:
            raise HTTPException(
                400, f"input has {len(inputs):,} entries, at most {MOST_INPUTS:,} are allowed"
            )
        dim = service.encoder.info.dim
        if request.dimensions is not None and request.dimensions > dim:
            raise HTTPException(400, f"dimensions must be at most {dim}, got {request.dimensions}")
        vectors = await _embed_all(service, inputs)
        texts = [text for text in inputs if not text.startswith("data:image/")]
        counted = await run_in_threadpool(service.encoder.count_tokens, texts) if texts else []
        tokens = sum(min(count, service.encoder.info.max_text_tokens) for count in counted)
        rows = [
            EmbeddingRow(index=number, embedding=_as_asked(vector, request))
            for number, vector in enumerate(vectors)
        ]
        usage = Usage(prompt_tokens=tokens, total_tokens=tokens)
        return EmbeddingAnswer(data=rows, model=service.encoder.info.name, usage=usage)

    @app.get("/v1/models")
    async def models() -> ModelList:
        """The encoder that is served."""
        info = service.encoder.info
        card = ModelCard(
            id=info.name,
            family=info.family,
            dim=info.dim,
            max_text_tokens=info.max_text_tokens,
            languages=list(info.languages),
            weights_sha256=info.weights_sha256,
            licence=info.licence,
        )
        return ModelList(data=[card])


async def _embed_all(service: SearchService, inputs: list[str]) -> list[NDArray[np.float32]]:
    """Vectors of many inputs, no more of them waiting at once than half the queue."""
    room = asyncio.Semaphore(max(1, service.settings.max_queue // 2))

    async def one(value: str) -> NDArray[np.float32]:
        async with room:
            if value.startswith("data:image/"):
                return await service.embedded("image", decode_data_uri(value))
            return await service.embedded("text", value)

    return list(await asyncio.gather(*(one(value) for value in inputs)))


def _as_asked(vector: NDArray[np.float32], request: EmbeddingRequest) -> list[float] | str:
    if request.dimensions is not None:
        vector = _unit(vector[: request.dimensions].tolist())
    if request.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return [float(value) for value in vector]


def _add_health(app: FastAPI, service: SearchService) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process is there."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str | int]:
        """The encoder is loaded and the index is open."""

        def state() -> dict[str, str | int]:
            with service.index() as index:
                return {"status": "ok", "images": len(index), "generation": index.manifest.generation}

        return await run_in_threadpool(state)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters and histograms in Prometheus's text format."""
        return Response(service.telemetry.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(app: FastAPI) -> None:
    def served(name: str) -> Callable[[], Awaitable[Response]]:
        data = files(__package__).joinpath(name).read_bytes()

        async def send() -> Response:
            headers = {"Content-Security-Policy": _PAGE_POLICY, "Cache-Control": "no-cache"}
            return Response(data, media_type=f"{_PAGE[name]}; charset=utf-8", headers=headers)

        return send

    for name in _PAGE:
        path = "/" if name == "page.html" else f"/{name}"
        app.get(path, response_class=Response, include_in_schema=False)(served(name))


def _add_errors(app: FastAPI) -> None:
    def answer(status: int, code: str, message: str, *, param: str | None = None) -> JSONResponse:
        headers = {"Retry-After": "1"} if status == 429 else None
        return JSONResponse(error_body(code, message, param=param), status, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return answer(
            400, "invalid_request", f"{where or 'the request'}: {first['msg']}", param=where or None
        )

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, StarletteHTTPException)
        codes = {404: "not_found", 405: "wrong_method"}
        return answer(error.status_code, codes.get(error.status_code, "invalid_request"), str(error.detail))

    @app.exception_handler(NoSuchItemError)
    async def missing(request: Request, error: Exception) -> JSONResponse:
        return answer(404, "not_found", str(error))

    @app.exception_handler(OverloadedError)
    async def overloaded(request: Request, error: Exception) -> JSONResponse:
        return answer(429, "overloaded", f"{error}; try again in a second")

    @app.exception_handler(ValueError)
    async def invalid_value(request: Request, error: Exception) -> JSONResponse:
        return answer(400, "invalid_request", str(error))

    @app.exception_handler(OSError)
    async def lost(request: Request, error: Exception) -> JSONResponse:
        return answer(404, "image_lost", "the image can no longer be read where it was indexed")
