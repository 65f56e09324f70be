"""Images per second of a build, beside the model's forward pass alone on arrays in memory."""

from __future__ import annotations

import statistics

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import Row, Settings
from llm2clip.encoders import Encoder, load_encoder
from llm2clip.indexer import BuildOptions, build_index, open_corpus

BATCH = 64


def measure(settings: Settings) -> list[Row]:
    """Forward and build in turns, so that a busy machine slows both; the ratio is of their medians."""
    encoder = load_encoder(settings.encoder)
    pixels, decoding = _prepared(encoder, settings)
    forward, build = [], []
    for turn in range(2 if settings.quick else 3):
        forward.append(_forward_rate(encoder, pixels, settings))
        build.append(_build_rate(encoder, settings, turn))
    rates = statistics.median(forward), statistics.median(build)
    name = "build"
    return [
        Row(
            benchmark=name,
            what="forward pass alone",
            value=rates[0],
            unit="images/s",
            better="higher",
            note=f"batches of {BATCH}, pixels in memory",
        ),
        Row(
            benchmark=name,
            what="decoding alone",
            value=decoding,
            unit="images/s",
            better="higher",
            note="one thread: read, decode, resize",
        ),
        Row(
            benchmark=name,
            what="whole build",
            value=rates[1],
            unit="images/s",
            aim=20,
            better="higher",
            note=f"{settings.corpus}, list to commit",
        ),
        Row(
            benchmark=name,
            what="build / forward",
            value=rates[1] / rates[0],
            unit="ratio",
            aim=0.8,
            better="higher",
        ),
    ]


def _prepared(encoder: Encoder, settings: Settings) -> tuple[NDArray[np.uint8], float]:
    """The pixels of the corpus (n, size, size, 3), uint8, and how many were decoded per second."""
    images = []
    began = settings.clock()
    for record in open_corpus(settings.corpus).records():
        images.append(encoder.prepare(record.read()).pixels)
    return np.stack(images), len(images) / (settings.clock() - began)


def _forward_rate(encoder: Encoder, pixels: NDArray[np.uint8], settings: Settings) -> float:
    encoder.encode_prepared(pixels[:BATCH])
    began = settings.clock()
    for start in range(0, len(pixels), BATCH):
        encoder.encode_prepared(pixels[start : start + BATCH])
    return len(pixels) / (settings.clock() - began)


def _build_rate(encoder: Encoder, settings: Settings, turn: int) -> float:
    options = BuildOptions(batch_size=BATCH, encoder_source=settings.encoder)
    began = settings.clock()
    report = build_index(settings.corpus, settings.work / f"build-{turn}", encoder=encoder, options=options)
    return (report.items + report.bad) / (settings.clock() - began)
