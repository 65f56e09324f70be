"""Images and captions per second on a GPU, by precision and batch size, and a whole build beside them."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from benchmarks.measuring import Row
from benchmarks.query_latency import SHORT
from benchmarks.report import table, terminal_columns
from llm2clip.encoders import Encoder, load_encoder
from llm2clip.indexer import BuildOptions, build_index

DTYPES = ("float32", "bfloat16", "float16")
BATCHES = (64, 512, 4096)
SECONDS = 2.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``python -m benchmarks.gpu.throughput``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="nano")
    parser.add_argument("--corpus", default="sample:")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    for dtype in DTYPES:
        encoder = load_encoder(options.encoder, device=options.device, dtype=dtype)
        for batch in BATCHES:
            rows += _rates(encoder, dtype=dtype, batch=batch)
    rows.append(_build(options.encoder, options.corpus, options.device))
    print(table(rows, columns=terminal_columns()))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", "utf-8")


def _rates(encoder: Encoder, *, dtype: str, batch: int) -> list[Row]:
    side = encoder.info.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    texts = [SHORT[number % len(SHORT)] for number in range(batch)]
    label = f"{dtype}, batches of {batch}"
    memory = (
        f"{torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB at most" if torch.cuda.is_available() else ""
    )
    calls: dict[str, Callable[[], object]] = {
        "images": lambda: encoder.encode_prepared(pixels),
        "queries": lambda: encoder.encode_texts(texts, batch_size=batch),
    }
    return [
        Row(
            benchmark=name,
            what=label,
            value=batch * _per_second(call),
            unit=f"{name}/s",
            better="higher",
            note=memory,
        )
        for name, call in calls.items()
    ]


def _per_second(call: Callable[[], object]) -> float:
    """Calls per second. Both calls end with vectors in main memory, so the GPU has finished when they return."""
    for _ in range(3):
        call()
    began, done = perf_counter(), 0
    while perf_counter() - began < SECONDS:
        call()
        done += 1
    return done / (perf_counter() - began)


def _build(name: str, corpus: str, device: str) -> Row:
    encoder = load_encoder(name, device=device)
    encoder.encode_prepared(np.zeros((1, encoder.info.image_size, encoder.info.image_size, 3), np.uint8))
    with tempfile.TemporaryDirectory() as work:
        report = build_index(
            corpus, Path(work) / "index", encoder=encoder, options=BuildOptions(batch_size=512)
        )
    rate = (report.items + report.bad) / report.seconds
    return Row(benchmark="build", what=corpus, value=rate, unit="images/s", better="higher")


if __name__ == "__main__":
    main()
