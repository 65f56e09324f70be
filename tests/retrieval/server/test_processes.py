"""``llm2clip-serve`` as a process of its own: how it is stopped, and tools over standard input and output."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from .serving import Served

_PATIENCE = 60.0
"""Seconds until a test gives up."""
PROGRAM = """
import sys, time
from pathlib import Path
from llm2clip import encoders

class Gated(encoders.FakeEncoder):
    def _text_batch(self, texts):
        if "slow" in texts:
            Path(sys.argv[1], "asked").touch()
            while not Path(sys.argv[1], "go").exists():
                time.sleep(0.01)
        return super()._text_batch(texts)

encoders.load_encoder = lambda name, **_: Gated()
from llm2clip.retrieval.server.cli import app
app(sys.argv[2:])
"""
"""The command, with an encoder that waits for a file before it encodes ``slow``."""


def await_that(true: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_server_answers_what_it_began_and_refuses_more_when_terminated(served: Served, tmp_path: Path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), "--index", str(served.path), "--encoder", "fake"]
    process = subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        address = process.stderr.readline().split()[-1]
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(httpx.post(f"{address}v1/search", json={"query": "slow"}, timeout=_PATIENCE))

        thread = threading.Thread(target=ask)
        thread.start()
        await_that((tmp_path / "asked").exists)
        process.send_signal(signal.SIGTERM)
        await_that(lambda: is_refused(address))
        assert (answers, process.poll()) == ([], None)
        (tmp_path / "go").touch()
        thread.join()
        assert answers[0].status_code == 200
        assert len(answers[0].json()["hits"]) == 20
        assert process.stderr.read() == "stop with Ctrl-C\n"
        assert process.wait(timeout=_PATIENCE) == 0
    finally:
        process.kill()
        process.communicate()


def is_refused(address: str) -> bool:
    place = urlsplit(address)
    with socket.socket() as client:
        client.settimeout(_PATIENCE)
        return client.connect_ex((place.hostname, place.port)) != 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_serve_command_mcp_answers_the_official_client(served: Served, tmp_path: Path):
    mcp = pytest.importorskip("mcp", reason="mcp is not installed")
    from mcp.client.stdio import StdioServerParameters, stdio_client

    arguments = ["-c", PROGRAM, str(tmp_path), "--mcp", "--index", str(served.path), "--encoder", "fake"]
    server = StdioServerParameters(command=sys.executable, args=arguments)

    async def called() -> tuple[list[str], Any, Any]:
        async with mcp.Client(stdio_client(server)) as client:
            tools = await client.list_tools()
            found = await client.call_tool("search", {"query": "红色 red", "limit": 3})
            wrong = await client.call_tool("search", {"query": "red", "where": "nothing ="})
            return sorted(tool.name for tool in tools.tools), found, wrong

    names, found, wrong = asyncio.run(called())
    assert names == ["more_like_this", "read_item", "search"]
    hits = found.structured_content["result"]
    vector = served.encoder.encode_texts(["红色 red"])[0]
    assert Path(hits[0]["path"]).name == served.ranked(vector)[0]
    assert len(hits) == 3
    assert wrong.is_error
    assert "filter" in wrong.content[0].text
