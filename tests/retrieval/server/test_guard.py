"""Who may ask, how much and how long, at a server over an application of three lines."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from llm2clip.retrieval.server.guard import Guard
from llm2clip.retrieval.service.settings import ServerSettings
from llm2clip.retrieval.service.telemetry import Telemetry

TOKEN = "a token of some length"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    if scope["path"] == "/slow":
        await asyncio.sleep(30)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def ask(settings: ServerSettings, path: str = "/v1/x", **options: Any) -> httpx.Response:
    async def whole() -> httpx.Response:
        app = Guard(echo, settings=settings, telemetry=Telemetry())
        base = options.pop("base", "http://localhost:8000")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=base) as client:
            return await client.request(options.pop("method", "POST"), path, **options)

    return asyncio.run(whole())


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "[::1]:8000", "LOCALHOST", "photos.example"])
def test_guard_takes_its_own_names(host: str):
    settings = ServerSettings(allowed_hosts=("photos.example",))
    assert ask(settings, headers={"host": host}, content=b"hi").content == b"hi"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil.example", "[::2]"]
)
def test_guard_refuses_foreign_hosts(host: str):
    assert code(ask(ServerSettings(), headers={"host": host})) == (421, "unknown_host")


def test_guard_refuses_pages_of_other_sites():
    assert code(ask(ServerSettings(), headers={"origin": "http://evil.example"})) == (403, "foreign_origin")
    assert code(ask(ServerSettings(), headers={"origin": "null"})) == (403, "foreign_origin")
    assert ask(ServerSettings(), headers={"origin": "http://localhost:8000"}).status_code == 200


@pytest.mark.parametrize(
    "header", [None, "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é"]
)
def test_guard_requires_the_token(header: str | None):
    headers = {"authorization": header.encode()} if header else {}
    response = ask(ServerSettings(token=TOKEN), headers=headers)
    assert code(response) == (401, "no_token")
    assert response.headers["www-authenticate"] == "Bearer"


def test_guard_takes_the_token_and_leaves_the_page_open():
    settings = ServerSettings(token=TOKEN, host="0.0.0.0", allowed_hosts=("box",))
    right = {"authorization": f"Bearer {TOKEN}", "host": "box"}
    assert ask(settings, headers=right).status_code == 200
    assert ask(settings, path="/healthz", headers={"host": "box"}).status_code == 200
    assert code(ask(settings, path="/healthz/../v1/x", headers={"host": "box"})) == (401, "no_token")


def test_guard_limits_the_body_with_and_without_its_length():
    settings = ServerSettings(max_body=1000)

    async def parts() -> Any:
        for _ in range(11):
            yield b"x" * 100

    assert ask(settings, content=b"x" * 1000).status_code == 200
    assert code(ask(settings, content=b"x" * 1001)) == (413, "too_large")
    assert code(ask(settings, content=parts())) == (413, "too_large")
    assert code(ask(settings, headers={"content-length": "-5"})) == (400, "bad_length")


def test_guard_limits_the_time():
    assert code(ask(ServerSettings(timeout=0.05), path="/slow")) == (408, "timeout")


def test_guard_stops_when_the_client_has_gone():
    stopped = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        try:
            await receive()
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            stopped.set()
            raise

    async def whole() -> None:
        messages = [{"type": "http.request", "body": b""}, {"type": "http.disconnect"}]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            raise AssertionError("nobody is there")

        scope = {"type": "http", "path": "/v1/x", "headers": [(b"host", b"localhost")]}
        await asyncio.wait_for(
            Guard(slow, settings=ServerSettings(), telemetry=Telemetry())(scope, receive, send), 10
        )
        assert stopped.is_set()

    asyncio.run(whole())


def test_settings_require_a_token_beyond_this_machine():
    with pytest.raises(ValueError, match="LLM2CLIP_TOKEN"):
        ServerSettings(host="0.0.0.0")
    with pytest.raises(ValueError, match="at least 16 characters, got 5"):
        ServerSettings(token="short")
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert ServerSettings(host=host).token is None
