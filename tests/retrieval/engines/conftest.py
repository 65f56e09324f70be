"""An index with captions and metadata of all types, and the address of a table in each engine."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import build_index

METADATA = (
    {"author": "Ann", "rating": 3, "tags": ["sea", "Über", 3], "camera": {"make": 'Ni"kon'}},
    {"author": "ann", "rating": 4.5, "tags": "sea", "camera": {"make": "Canon"}, "done": True},
    {"author": "Bo%b_", "rating": "3", "tags": [], "done": False},
    {"author": "Zoë", "rating": None, "tags": [True, "3"], "nested": [["sea"]]},
    {"rating": -1, "author": 7, "tags": ["x", "y"], "long": 12345678901234567890},
    {},
)
CAPTIONS = ("a red square", "Straße bei Nacht", "100% wool_len 'quoted'", "back\\slash\nline", "長頸鹿", None)


@pytest.fixture(scope="session")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 48 images, each with its own colour and a JSON file beside it."""
    folder = tmp_path_factory.mktemp("album") / "album"
    random = np.random.default_rng(5)
    for number in range(48):
        name = f"{('', 'summer', 'summer/Zoë')[number % 3]}/{number:03d}{('', '-Ä', '_x')[number % 3]}".strip(
            "/"
        )
        file = folder / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        colour = "#" + random.integers(0, 256, 3, dtype=np.uint8).tobytes().hex()
        Image.new("RGB", (20 + number, 16), colour).save(file)
        told = {**METADATA[number % 6], "caption": CAPTIONS[number // 2 % 6]}
        file.with_suffix(".json").write_text(
            json.dumps({name: each for name, each in told.items() if each != ""})
        )
    (folder / "copy.png").write_bytes((folder / "000.png").read_bytes())
    return folder


@pytest.fixture
def album_index(album: Path, tmp_path: Path) -> Path:
    """Its index by ``FakeEncoder``."""
    build_index(album, tmp_path / "album.index", encoder=FakeEncoder())
    return tmp_path / "album.index"


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the database of a server that runs for the tests."""
    pytest.importorskip("psycopg", reason=_MISSING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where XDG_RUNTIME_DIR is not set
        pgserver = pytest.importorskip("pgserver", reason=_MISSING)
    # The server runs as another user if this is root, and the path of its socket is short.
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    folder.chmod(0o755)
    server = pgserver.get_server(folder / "data", cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The host and port of a server that runs for the tests; a second one beside it would not start."""
    pytest.importorskip("pymilvus", reason=_MISSING)
    pytest.importorskip("milvus", reason=_MISSING)
    folder = tmp_path_factory.mktemp("milvus")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-c",
        "import milvus; milvus.main()",
        "--data",
        str(folder),
        "--proxy-port",
        str(port),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as run:
        try:
            _wait_for_milvus(f"http://127.0.0.1:{port}")
            yield f"127.0.0.1:{port}"
        finally:
            os.killpg(run.pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def _wait_for_milvus(uri: str) -> None:
    import pymilvus

    for _ in range(120):
        with contextlib.suppress(pymilvus.MilvusException):
            pymilvus.MilvusClient(uri=uri, timeout=1).close()
            return
        time.sleep(1)
    raise TimeoutError("Milvus did not start within two minutes")


_MISSING = "not installed: pip install 'llm2clip-retrieval[servers]'"
_numbers = itertools.count()


@pytest.fixture(params=["lance", "postgresql", pytest.param("milvus", marks=pytest.mark.slow)])
def new_table(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Makes addresses of tables that do not exist, in each engine in turn."""
    if request.param == "lance":
        pytest.importorskip("lancedb", reason=_MISSING)
        return lambda: f"lance://{tmp_path}/db/t{next(_numbers)}"
    if request.param == "milvus":
        server = request.getfixturevalue("milvus")
        return lambda: f"milvus://{server}/t{next(_numbers)}"
    head, _, query = request.getfixturevalue("postgres").partition("?")
    return lambda: f"{head}/t{next(_numbers)}?{query}"
