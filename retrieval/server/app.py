"""The HTTP API as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

from llm2clip.common.files import versions
from llm2clip.retrieval.server.embeddings_api import embeddings_router
from llm2clip.retrieval.server.guard import PAGE_FILES, Guard, error_body
from llm2clip.retrieval.server.search_api import search_router
from llm2clip.retrieval.service.batching import OverloadedError
from llm2clip.retrieval.service.search_service import NoSuchItemError, SearchService

_PAGE = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
"""Types of the page's files."""
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


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
    app.include_router(search_router(service))
    app.include_router(embeddings_router(service))
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
    def served(file: Traversable) -> Callable[[], Awaitable[Response]]:
        data, kind = file.read_bytes(), _PAGE[file.name.rpartition(".")[2]]

        async def send() -> Response:
            headers = {"Content-Security-Policy": _PAGE_POLICY, "Cache-Control": "no-cache"}
            return Response(data, media_type=f"{kind}; charset=utf-8", headers=headers)

        return send

    for file in files(__package__).joinpath("page").iterdir():
        path = "/" if file.name == "page.html" else f"{PAGE_FILES}{file.name}"
        app.get(path, response_class=Response, include_in_schema=False)(served(file))


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
