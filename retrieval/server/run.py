"""Start a server: open the index, warm the encoder, listen, stop gracefully."""

from __future__ import annotations

import signal
import socket
import sys
import warnings
from typing import TYPE_CHECKING

from llm2clip.common.terminal import escape_control
from llm2clip.retrieval.query.texts import LongTextWarning
from llm2clip.retrieval.searcher import Searcher

if TYPE_CHECKING:
    from llm2clip.retrieval.service.settings import ServerSettings


def run_server(settings: ServerSettings, *, index: str | None, encoder: str | None, device: str) -> None:
    """Serve until interrupted or terminated; requests in progress are answered first, new ones refused.

    Raises:
        OSError: The address cannot be listened on.
        IndexerError, ModelError: The index or its encoder cannot be opened.
    """
    import uvicorn

    from llm2clip.retrieval.server.app import make_app
    from llm2clip.retrieval.service.search_service import SearchService

    listening = _listen(settings)
    with Searcher.open(index, encoder=encoder, device=device) as searcher:
        path, loaded = searcher.index.path, searcher.encoder
        images = len(searcher.index)
    warnings.simplefilter("ignore", LongTextWarning)  # answers say it
    loaded.encode_texts(["warm"])
    service = SearchService(path, loaded, settings, device=device if device.startswith("cuda") else "cpu")
    service.calibrate()
    address = f"http://{_shown(settings.host)}:{listening.getsockname()[1]}/"
    print(f"{images:,} images of {escape_control(str(path))} at {address}", file=sys.stderr)
    print("stop with Ctrl-C", file=sys.stderr)
    config = uvicorn.Config(
        make_app(service),
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=int(settings.timeout) + 1,
        limit_concurrency=None,
        h11_max_incomplete_event_size=64 * 1024,
    )
    # uvicorn raises the signal that stopped it again at its end, when all is answered: that is no failure.
    signal.signal(signal.SIGTERM, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listening])


def _listen(settings: ServerSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
        listening.listen()  # from now on clients wait rather than fail
    except OSError as error:
        listening.close()
        raise OSError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}; choose another with "
            "--port, or --port 0 for any free one"
        ) from error
    return listening


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
