"""A small index, the service over it, and a server that runs in a thread."""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from numpy.typing import NDArray
from PIL import Image

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import build_index
from llm2clip.retrieval.server.app import make_app
from llm2clip.retrieval.service.search_service import SearchService
from llm2clip.retrieval.service.settings import ServerSettings

COUNT = 40


class SlowEncoder(FakeEncoder):
    """Waits for ``go`` before it encodes texts."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.go.set()

    def _text_batch(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.go.wait(20)
        return super()._text_batch(texts)


class Served:
    """An index, the service over it, and requests to it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.corpus, self.path, self.encoder = folder / "corpus", folder / "photos.index", SlowEncoder()
        self.corpus.mkdir()
        for number in range(COUNT):
            colour = (number * 6, 255 - number * 6, number * 37 % 256)
            Image.new("RGB", (30, 20), colour).save(self.corpus / f"{number:02}.png")
            (self.corpus / f"{number:02}.txt").write_text(f"colour number {number}")
        build_index(self.corpus, self.path, encoder=self.encoder)
        self.settings = ServerSettings(**settings)

    def run(self, test: Callable[[httpx.AsyncClient, SearchService], Any]) -> Any:
        async def whole() -> Any:
            service = SearchService(self.path, self.encoder, self.settings)
            transport = httpx.ASGITransport(make_app(service))
            try:
                async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                    return await test(client, service)
            finally:
                self.encoder.go.set()
                await service.close()

        return asyncio.run(whole())

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def once(client: httpx.AsyncClient, service: SearchService) -> httpx.Response:
            return await client.request(method, path, **options)

        return self.run(once)

    def search(self, **request: Any) -> dict[str, Any]:
        # The colours are close to one another, and so would be taken for copies.
        response = self.ask("POST", "/v1/search", json={"fold": False, **request})
        assert response.status_code == 200, response.text
        return response.json()

    def ranked(self, vector: NDArray[Any]) -> list[str]:
        """Every key, best first, by brute force over the stored precision."""
        files = sorted(self.corpus.glob("*.png"))
        rows = self.encoder.encode_images(files).astype(np.float16).astype(np.float64)
        scores = (rows @ np.asarray(vector, dtype=np.float64)).astype(np.float32)
        return [files[row].name for row in np.lexsort((np.arange(len(files)), -scores))]


def data_uri(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def keys(answer: dict[str, Any]) -> list[str]:
    return [hit["key"] for hit in answer["hits"]]


@contextmanager
def running_server(service: SearchService) -> Iterator[str]:
    """The address of a server on a free port, in a thread."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(service), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
