"""``python -m llm2clip.retrieval.daemon.server``: the daemon; ``llm2clip.common.daemon_client`` starts it.

The main thread runs one search at a time, in the place of the process that asked: its arguments, environment, folder
and standard streams. Another thread takes connections, and notices who hung up.
"""

from __future__ import annotations

import contextlib
import os
import queue
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from functools import cache
from typing import Any, final

from llm2clip.common.daemon_client import IDLE_SECONDS, IDLE_VARIABLE
from llm2clip.common.daemon_socket import DaemonError, receive, require_own_peer, send, start_conditions
from llm2clip.retrieval.daemon.stand_in import deliver, redirect_to_nowhere, reject_unlike, stand_in_for
from llm2clip.retrieval.daemon.versions import file_times
from llm2clip.retrieval.daemon.warm import WarmSearchers

_PATIENCE = 2.0
"""Seconds that a peer has to send its request."""
_LEAST_MEMORY = 256 * 10**6
"""Free bytes below which the daemon ends after a search."""


@final
@dataclass(eq=False)
class Client:
    """A process that asked for a command."""

    connection: socket.socket
    request: dict[str, Any]
    streams: list[int]
    """Its standard input, output and error."""
    gone: bool = False
    """Whether it hung up."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let go of its streams and hang up; the watching thread closes the connection."""
        with self._lock:
            for stream in self.streams:
                os.close(stream)
            self.streams = []
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def hang_up(self) -> None:
        """Called when it hung up: it is not to be served, and whoever reads its output sees the end."""
        with self._lock:
            self.gone = True
            redirect_to_nowhere(self.streams)
            self.connection.close()


@final
@dataclass(eq=False)
class Daemon:
    """Serves one user until nobody searched for a while."""

    listening: socket.socket
    idle: float = IDLE_SECONDS
    """Seconds without a search after which it ends."""
    searchers: WarmSearchers = field(default_factory=WarmSearchers)

    def __post_init__(self) -> None:
        self._conditions = start_conditions()
        self._times = file_times()
        self._began = time.time()
        self._served = 0
        self._waiting: queue.SimpleQueue[Client | None] = queue.SimpleQueue()
        self._current: Client | None = None
        self._path = self.listening.getsockname()

    def run(self) -> None:
        """Serve until idle, stopped, outdated or short of memory. Called in the main thread."""
        signal.signal(signal.SIGINT, self._on_interrupt)
        threading.Thread(target=self._watch, daemon=True).start()
        printing: list[threading.Thread] = []
        while True:
            try:
                client = self._waiting.get(timeout=self.idle)
            except queue.Empty:
                break
            if client is None or not self._serve(client, printing):
                break
            printing = [thread for thread in printing if thread.is_alive()]
        self._close()
        for thread in printing:
            thread.join()

    # --- the main thread -------------------------------------------------------------------------------------------

    def _serve(self, client: Client, printing: list[threading.Thread]) -> bool:
        """Run a command; says whether the daemon goes on."""
        if client.gone:
            client.close()
            return True
        try:
            if problem := self._outdated(client.request):
                self._close()  # before the answer, so that whoever starts the next finds the place free
                self._end(client, {"is": "ends", "why": problem})
                return False
            send(client.connection, {"is": "begun"})
            status, printed = self._run(client)
        except (MemoryError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            self._end(client, {"is": "refused", "why": f"{type(error).__name__}: {error}"})
            return not isinstance(error, MemoryError)
        self._served += 1
        thread = threading.Thread(target=self._print, args=(client, status, printed))
        thread.start()
        printing.append(thread)
        from llm2clip.common.files import free_memory

        return free_memory() >= _LEAST_MEMORY

    def _run(self, client: Client) -> tuple[int, bytes]:
        """Exit status of a command, and what it printed on standard output."""
        with stand_in_for(client.request, client.streams) as output:
            self._current = client
            try:
                if client.gone:
                    raise KeyboardInterrupt
                status = self._call(client.request["arguments"], program=client.request["program"])
            except KeyboardInterrupt:
                status = 130
            finally:
                self._current = None
            sys.stdout.flush()
            return status, output.getvalue()

    def _call(self, arguments: list[str], *, program: str) -> int:
        """Exit status of the command. Raises ``MemoryError`` and ``KeyboardInterrupt`` only."""
        try:
            _command().main(args=arguments, prog_name=program, obj=self.searchers)
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except MemoryError:
            raise
        except Exception:  # what would end a process must not end the daemon
            traceback.print_exc()
            return 1
        return 0

    def _on_interrupt(self, *_: object) -> None:
        if self._current is not None and self._current.gone:
            raise KeyboardInterrupt

    def _outdated(self, request: dict[str, Any]) -> str | None:
        """Why this process would not do what a new one does; None if it would."""
        if file_times() != self._times:
            return "it runs older code than is installed"
        if unlike := reject_unlike(self._conditions, request["conditions"]):
            return f"it was started with another value of {unlike}"
        return None

    def _print(self, client: Client, status: int, printed: bytes) -> None:
        """Print in a thread: whoever reads, such as less, may take its time."""
        with contextlib.suppress(OSError):
            if printed:
                send(client.connection, {"is": "printing"})
            status = deliver(printed, client.streams[1]) or status
        self._end(client, {"is": "ended", "status": status})

    def _end(self, client: Client, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            send(client.connection, message)
        client.close()

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    # --- the other thread ------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Take connections and notice who hung up."""
        watched = selectors.DefaultSelector()
        watched.register(self.listening, selectors.EVENT_READ)
        while True:
            for key, _ in watched.select():
                if key.fileobj is not self.listening:
                    watched.unregister(key.fileobj)
                    self._hung_up(key.data)
                elif client := self._accept():
                    watched.register(client.connection, selectors.EVENT_READ, client)
                    self._waiting.put(client)

    def _accept(self) -> Client | None:
        """The next process that asks for a command; questions are answered at once."""
        connection, _ = self.listening.accept()
        try:
            connection.settimeout(_PATIENCE)
            require_own_peer(connection)
            request, streams = receive(connection, files=3)
            if len(streams) == 3:
                return Client(connection, request, streams)
            for stream in streams:
                os.close(stream)
            send(connection, self._status())
            if request.get("ask") == "stop":
                self._waiting.put(None)
        except (DaemonError, OSError):
            pass
        connection.close()
        return None

    def _hung_up(self, client: Client) -> None:
        client.hang_up()
        if client is self._current:
            redirect_to_nowhere(range(3))
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _status(self) -> dict[str, Any]:
        return {
            "process": os.getpid(),
            "since": self._began,
            "searches": self._served,
            "idle": self.idle,
            "kept": self.searchers.names(),
        }


@cache
def _command() -> Any:  # noqa: ANN401 (typer's or click's own)
    from typer.main import get_command

    from llm2clip.retrieval.cli import app

    return get_command(app)


def main() -> None:
    """Serve on the inherited socket; the inherited lock is held for as long as this process lives."""
    listening = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(listening.fileno(), False)
    os.set_inheritable(int(sys.argv[2]), False)
    Daemon(listening, idle=float(os.environ.get(IDLE_VARIABLE) or IDLE_SECONDS)).run()
    sys.stdout.flush()
    os._exit(0)  # nothing is left to be saved


if __name__ == "__main__":
    main()
