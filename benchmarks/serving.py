"""The server under load: 32 clients, with and without micro-batches, and its memory over many requests."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.index_data import unit
from benchmarks.measuring import Row, Settings, percentile

CLIENTS = 32
VECTORS = 100_000
WORDS = [
    "red",
    "dog",
    "beach",
    "night",
    "old",
    "street",
    "snow",
    "child",
    "green",
    "boat",
    "two",
    "cat",
    "flower",
    "market",
    "rain",
    "bridge",
]


def measure(settings: Settings) -> list[Row]:
    """Both servers answer the same queries in one run, none of them from the cache of query vectors."""
    vectors, requests = (2_000, 320) if settings.quick else (VECTORS, 3_200)
    path = make_index(settings.work / "serving.index", encoder=settings.encoder, vectors=vectors)
    rows = []
    rates = {}
    for name, batch in (("one at a time", 1), ("micro-batches of 32", 32)):
        with serve(path, encoder=settings.encoder, max_batch=batch) as (address, process):
            asyncio.run(load(address, requests=CLIENTS * 4, first=10**6))  # warm
            begun = time.perf_counter()
            times = asyncio.run(load(address, requests=requests, first=0))
            rates[name] = requests / (time.perf_counter() - begun)
            tail = percentile(times, 99) / percentile(times, 50)
            rows += [
                _row(f"requests a second, {name}", rates[name], "1/s", better="higher"),
                _row(f"median latency, {name}", percentile(times, 50) * 1e3, "ms"),
                _row(f"99th percentile over median, {name}", tail, "ratio", aim=5.0),
            ]
            if batch > 1:
                rows += memory(address, process, requests=400 if settings.quick else 20_000)
    gain = rates["micro-batches of 32"] / rates["one at a time"]
    return [*rows, _row("micro-batches over one at a time", gain, "ratio", aim=3.0, better="higher")]


def memory(address: tuple[str, int], process: int, *, requests: int) -> list[Row]:
    """Growth of the resident memory over the second half of many requests."""
    sizes = []
    for part in range(10):
        asyncio.run(load(address, requests=requests // 10, first=10**7 + part * requests))
        sizes.append(resident(process))
    half = sizes[len(sizes) // 2 :]
    slope = float(np.polyfit(np.arange(len(half)) * requests / 10, half, 1)[0])
    return [
        _row(f"resident memory after {requests:,} requests", sizes[-1] / 2**20, "MiB"),
        _row("growth of it, of the second half", slope * 1e5 / 2**20, "MiB in 100,000 requests"),
    ]


def _row(what: str, value: float, unit: str, **aim: float | str) -> Row:
    return Row(benchmark="serving", what=what, value=value, unit=unit, **aim)  # type: ignore[arg-type]


def make_index(path: Path, *, encoder: str, vectors: int) -> Path:
    """An index of the sample's vectors, jittered up to so many, without images."""
    from llm2clip.encoders import load_encoder
    from llm2clip.indexer.lifecycle.commit import commit
    from llm2clip.indexer.records.record import Record
    from llm2clip.indexer.storage.manifest import empty_manifest
    from llm2clip.indexer.storage.outcome import Outcome
    from llm2clip.indexer.storage.transaction import Transaction
    from llm2clip.retrieval.sample_index import open_sample

    loaded = load_encoder(encoder, device="cpu")
    with open_sample(loaded) as sample:
        real = sample.vectors.take(np.arange(len(sample))).astype(np.float32)
    random = np.random.default_rng(7)
    a, b, c = random.integers(0, len(real), (3, vectors))
    rows = unit(
        real[a]
        + 0.4 * (real[b] - real[c])
        + 0.004 * random.standard_normal((vectors, real.shape[1]), np.float32)
    )
    base = empty_manifest(
        sources=[{"kind": "folder", "spec": "p", "root": "/p"}],
        encoder=loaded.info.identity(),
        encoder_source=encoder,
    )
    outcomes = [
        Outcome(
            record=Record(
                key=f"{n // 1000}/{n}.jpg",
                uri="",
                file=Path(),
                size=1,
                mtime_ns=n * 10**13,
                caption=f"number {n}",
            ),
            vector=row,
            hash=n.to_bytes(16, "big"),
            width=1600,
            height=1200,
        )
        for n, row in enumerate(rows.astype(np.float16))
    ]
    path.mkdir()
    with Transaction.create(path, base) as transaction:
        transaction.append(outcomes)
        commit(transaction, path, planner=None)
    return path


@contextmanager
def serve(path: Path, *, encoder: str, max_batch: int) -> Iterator[tuple[tuple[str, int], int]]:
    """A server in a process of its own: host and port, and process id."""
    command = [
        sys.executable,
        "-m",
        "llm2clip.retrieval.server.cli",
        "--index",
        str(path),
        "--encoder",
        encoder,
    ]
    command += ["--port", "0", "--device", "cpu", "--max-batch", str(max_batch), "--timeout", "300"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None, "it is a pipe"
            told = next(
                (found for line in server.stderr if (found := re.search(r"http://(.*):(\d+)/", line))), None
            )
            if told is None:
                raise RuntimeError(f"the server did not start: exit code {server.wait()}")
            yield (told[1], int(told[2])), server.pid
        finally:
            server.terminate()


async def load(address: tuple[str, int], *, requests: int, first: int) -> list[float]:
    """Seconds of each of many searches by ``CLIENTS`` clients, each over one connection. Queries begin at ``first``."""
    numbers = iter(range(first, first + requests))
    times: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection(*address)
        for number in numbers:
            body = json.dumps({"query": query(number), "limit": 20}).encode()
            begun = time.perf_counter()
            writer.write(
                b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                + f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            if not head.startswith(b"HTTP/1.1 200") or length is None:
                raise RuntimeError(f"the server answered {head!r}")
            await reader.readexactly(int(length[1]))
            times.append(time.perf_counter() - begun)
        writer.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return times


def query(number: int) -> str:
    """A short text, another for every number."""
    words = [WORDS[number // len(WORDS) ** place % len(WORDS)] for place in range(3)]
    return f"{' '.join(words)} {number}"


def resident(process: int) -> int:
    """Resident memory of a process in bytes (Linux)."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
