"""Where every command begins, and what Ctrl-C does to it.

A command spends its first tenths of a second on imports. Ctrl-C ends it there at once and in one line; an exception
raised in the middle of an import would be a page of traceback, or be swallowed.
"""

from __future__ import annotations

import gc
import os
import sys

INTERRUPTED = "interrupted"
COMMANDS = {
    "llm2clip-index": "llm2clip.indexer.cli",
    "llm2clip-search": "llm2clip.retrieval.cli",
    "llm2clip-train": "llm2clip.train.cli",
    "llm2clip-eval": "llm2clip.eval.cli",
    "llm2clip-serve": "llm2clip.retrieval.server.cli",
}
"""The module of each command's typer application."""


def index() -> None:
    """Entry point of ``llm2clip-index``."""
    start(COMMANDS["llm2clip-index"])


def search() -> None:
    """Entry point of ``llm2clip-search``."""
    # A search lives for two seconds and imports a thousand modules. Collecting garbage meanwhile, and taking
    # the modules apart at the end, would add a fifth to that and free nothing that its end does not.
    gc.disable()
    try:
        start(COMMANDS["llm2clip-search"], daemon="llm2clip.retrieval.daemon.server")
    finally:
        gc.freeze()


def train() -> None:
    """Entry point of ``llm2clip-train``."""
    start(COMMANDS["llm2clip-train"])


def evaluate() -> None:
    """Entry point of ``llm2clip-eval``."""
    start(COMMANDS["llm2clip-eval"])


def serve() -> None:
    """Entry point of ``llm2clip-serve``."""
    start(COMMANDS["llm2clip-serve"])


def end_at_once(*_: object) -> None:
    """The signal handler of Ctrl-C outside ``graceful_interrupt``: one line, and the process ends."""
    os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(130)


def start(module: str, *, daemon: str | None = None) -> None:
    """Import ``app`` of a module, run it, and end the process.

    Args:
        module: Dotted name of a module that holds a typer application under this name.
        daemon: Dotted name of the module of a daemon that may run the command instead.
    """
    try:
        import signal
        from importlib import import_module

        interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if interruptible:
            signal.signal(signal.SIGINT, end_at_once)
        _open_streams()
        try:
            if daemon is not None:
                from llm2clip.common.daemon_client import hand_over

                status = hand_over(sys.argv[1:], module=daemon)
                if status is not None:
                    sys.exit(status)
            import_module(module).app()
        finally:
            if interruptible:  # all is done: what remains is tidying up
                signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(130)


def _open_streams() -> None:
    """Open what a service or a launcher closed: otherwise a file that is written becomes standard output."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
