"""``llm2clip-search --daemon``: what the daemon keeps, and how it is ended."""

from __future__ import annotations

import time
from typing import Any

from llm2clip.common.daemon_client import ask
from llm2clip.common.daemon_socket import DaemonError
from llm2clip.common.terminal import escape_control


def manage_daemon(action: str) -> None:
    """Print what the daemon of this user and installation says to ``status`` or ``stop``; status 1 if none runs."""
    try:
        answer = ask(action)
    except DaemonError as error:
        raise ValueError(f"the daemon cannot be asked: {error}") from error
    if answer is None:
        print("no daemon runs")
        raise SystemExit(1)
    for line in _lines(answer, stopped=action == "stop"):
        print(escape_control(line))


def _lines(answer: dict[str, Any], *, stopped: bool) -> list[str]:
    if stopped:
        return [f"process {answer['process']} ends after the search that it is at"]
    minutes = (time.time() - float(answer["since"])) / 60
    return [
        f"process {answer['process']} for {minutes:,.0f} minutes, {answer['searches']:,} searches",
        *(f"keeps {each}" for each in answer["kept"]),
        f"ends after {float(answer['idle']) / 60:g} minutes without a search",
    ]
