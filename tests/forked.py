"""Runs programs in processes forked from one that has imported torch and the like, which takes seconds each time."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

IMPORTED = (
    "faiss",
    "tokenizers",
    "torch",
    "transformers",
    "llm2clip.encoders.llm2clip.encoder_folder",
    "llm2clip.eval.commands.run",
    "llm2clip.indexer.commands.build",
    "llm2clip.indexer.lifecycle.build",
    "llm2clip.indexer.search.index",
    "llm2clip.retrieval.commands",
)


class Forked:
    """The process that forks."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, program: str, *, folder: Path, environment: Mapping[str, str]) -> tuple[int, str]:
        """Exit status of a Python program, and what it wrote to standard output and error, as a terminal shows it."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with tempfile.NamedTemporaryFile() as output:
            order = {"program": program, "folder": str(folder), "output": output.name}
            self._server.stdin.write(json.dumps(order | {"environment": dict(environment)}) + "\n")
            self._server.stdin.flush()
            status = int(self._server.stdout.readline())
            return status, Path(output.name).read_text(encoding="utf-8")

    def close(self) -> None:
        self._server.kill()
        self._server.communicate()


@pytest.fixture(scope="module")
def forked() -> Iterator[Forked]:
    if not hasattr(os, "fork"):
        pytest.skip("forks")
    server = Forked()
    yield server
    server.close()


def serve() -> None:
    """Fork for every line of standard input, and answer with the exit status."""
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            _become(order)
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(order: Mapping[str, str | dict[str, str]]) -> None:
    """Run the program in this process, with its own folder, environment and output."""
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    output = os.open(order["output"], os.O_WRONLY | os.O_APPEND)
    for descriptor, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
        os.dup2(descriptor, target)
    exec(order["program"], {"__name__": "__main__"})


if __name__ == "__main__":
    serve()
