"""The ``llm2clip-serve`` command."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from llm2clip.common import entrypoint
from llm2clip.common.terminal import GroupedCommand, VersionOption, make_app, one_line_errors

server_option, index_option, limit_option, machine_option = (
    partial(typer.Option, rich_help_panel=group) for group in ("Server", "Index", "Limits", "Machine")
)
"""Options that ``--help`` lists in a group."""

_INDEX = "Folder, name (see `llm2clip-index list`) or address of the index, or sample: for the sample images."
_HOST = "Address to listen on; others than this machine's need a token in LLM2CLIP_TOKEN."
_ALLOW = "Another name of this server, for a reverse proxy; repeatable."
_QUEUE = "Queries that may wait; further ones get status 429."
_MCP = "Serve tools for a language model over standard input and output (MCP) instead."
_DEVICE = "Where to encode and search: auto, cpu, cuda or cuda:N."

app = make_app()


@app.command(cls=GroupedCommand)
def serve(
    index: Annotated[
        str | None,
        index_option(
            metavar="INDEX",
            help=_INDEX,
            show_default="LLM2CLIP_INDEX, else the default index, else sample:",
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        index_option(
            metavar="NAME", help="Name or folder of the encoder.", show_default="the index's encoder"
        ),
    ] = None,
    host: Annotated[str, server_option(metavar="ADDRESS", help=_HOST)] = "127.0.0.1",
    port: Annotated[int, server_option(min=0, max=65535, help="TCP port; 0: any free one.")] = 8000,
    allow_host: Annotated[list[str] | None, server_option(metavar="NAME", help=_ALLOW)] = None,
    max_batch: Annotated[int, limit_option(min=1, metavar="N", help="Queries per forward pass.")] = 8,
    max_queue: Annotated[int, limit_option(min=1, metavar="N", help=_QUEUE)] = 256,
    timeout: Annotated[
        float, limit_option(min=0.1, metavar="SECONDS", help="Longest time of a request.")
    ] = 30.0,
    device: Annotated[str, machine_option(metavar="DEVICE", help=_DEVICE)] = "auto",
    mcp: Annotated[bool, server_option("--mcp", help=_MCP)] = False,
    version: VersionOption = False,
) -> None:
    """Serve an index: web page, search API and OpenAI-compatible embeddings."""
    with one_line_errors(extra="mcp" if mcp else "serve"):
        if mcp:
            from llm2clip.retrieval.searcher import Searcher
            from llm2clip.retrieval.server.mcp_tools import make_tools

            with Searcher.open(index, encoder=encoder, device=device) as searcher:
                make_tools(searcher).run()
            return
        from llm2clip.retrieval.server.run import run_server
        from llm2clip.retrieval.service.settings import ServerSettings, token_of_environment

        settings = ServerSettings(
            host=host,
            port=port,
            token=token_of_environment(),
            allowed_hosts=tuple(name.lower() for name in allow_host or ()),
            max_batch=max_batch,
            max_queue=max_queue,
            timeout=timeout,
        )
        run_server(settings, index=index, encoder=encoder, device=device)


if __name__ == "__main__":
    entrypoint.serve()
