"""The outer shell of the server: who may ask, how much, how long; one shape of errors."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, final
from urllib.parse import urlsplit

from llm2clip.retrieval.service.settings import ServerSettings, is_loopback
from llm2clip.retrieval.service.telemetry import Telemetry

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PAGE_FILES = "/page/"
"""Where the files of the page are."""
OPEN_PATHS = frozenset({"/", "/healthz", "/readyz"})
"""What needs no token, beside ``PAGE_FILES``: the page asks for one itself, and health checks have none."""
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class RefusedError(Exception):
    """A request is refused before it is read."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def error_body(code: str, message: str, *, param: str | None = None) -> dict[str, Any]:
    """The one shape of errors, which OpenAI's clients read as well."""
    kind = "server_error" if code in ("internal", "overloaded", "timeout") else "invalid_request_error"
    return {"error": {"code": code, "message": message, "param": param, "type": kind}}


@final
class Guard:
    """ASGI middleware: names of hosts, origin, token, size and time of requests; counts them."""

    def __init__(self, app: App, *, settings: ServerSettings, telemetry: Telemetry) -> None:
        self._app, self._settings, self._telemetry = app, settings, telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, sent = time.perf_counter(), _Sent(send)
        try:
            self._check(scope)
            async with asyncio.timeout(self._settings.timeout):
                await self._until_gone(scope, _Body(receive, self._settings.max_body), sent)
        except RefusedError as error:
            self._telemetry.rejected.labels(error.code).inc()
            await sent.error(error.status, error.code, error.message)
        except TimeoutError:
            self._telemetry.rejected.labels("timeout").inc()
            message = f"no answer within {self._settings.timeout:g} seconds; ask for less or try again"
            await sent.error(408, "timeout", message)
        route = getattr(scope.get("route"), "path", "other")
        self._telemetry.requests.labels(route, str(sent.status)).observe(time.perf_counter() - begun)

    async def _until_gone(self, scope: Scope, body: _Body, sent: _Sent) -> None:
        """Answer, or stop when the client has gone."""
        answering = asyncio.ensure_future(self._app(scope, body, sent))
        leaving = asyncio.ensure_future(body.gone.wait())
        watching = asyncio.ensure_future(body.watch())
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
            else:
                sent.status = 499
        finally:
            for task in (answering, leaving, watching):
                if not task.done():
                    task.cancel()
            await asyncio.gather(answering, leaving, watching, return_exceptions=True)

    def _check(self, scope: Scope) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if not self._known(_name(host)):
            raise RefusedError(
                421,
                "unknown_host",
                f"this server is not called {host[:80]!r}; name it with --allow-host",
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise RefusedError(403, "foreign_origin", "pages of other sites may not use this server")
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            raise RefusedError(400, "bad_length", "Content-Length must be a number")
        if int(length[:20]) > self._settings.max_body:
            raise _too_large(self._settings.max_body)
        token = self._settings.token
        is_open = scope["path"] in OPEN_PATHS or scope["path"].startswith(PAGE_FILES)
        if token is not None and not is_open:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
                raise RefusedError(401, "no_token", "send the server's token as  Authorization: Bearer TOKEN")

    def _known(self, name: str) -> bool:
        return is_loopback(name) or name == self._settings.host or name in self._settings.allowed_hosts


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _too_large(most: int) -> RefusedError:
    return RefusedError(413, "too_large", f"a request may have {most:,} bytes; send less, or a smaller image")


@final
class _Body:
    """Receives the body of a request, at most so many bytes, and notices when the client goes."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._most, self._read = receive, most, 0
        self._whole = asyncio.Event()
        self.gone = asyncio.Event()

    async def __call__(self) -> Message:
        if self._whole.is_set():  # all is read: the next message says that the client has gone
            await self.gone.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone.set()
            return message
        self._read += len(message.get("body", b""))
        if self._read > self._most:
            raise _too_large(self._most)
        if not message.get("more_body", False):
            self._whole.set()
        return message

    async def watch(self) -> None:
        """Wait until the client goes, once the body is read."""
        await self._whole.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone.set()


@final
class _Sent:
    """Sends an answer with the headers that every answer has; knows its status."""

    def __init__(self, send: Send) -> None:
        self._send, self.status, self._begun = send, 0, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begun, self.status = True, message["status"]
            message["headers"] = [*message.get("headers", ()), *_HEADERS]
        await self._send(message)

    async def error(self, status: int, code: str, message: str) -> None:
        """Answer with an error, unless an answer has begun."""
        if self._begun:
            return
        body = json.dumps(error_body(code, message)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await self({"type": "http.response.start", "status": status, "headers": headers})
        await self({"type": "http.response.body", "body": body})
