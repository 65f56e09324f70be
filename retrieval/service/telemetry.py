"""What ``/metrics`` reports, for Prometheus. Nothing is sent anywhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


@final
class Telemetry:
    """Counters and histograms of one server."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Histogram(
            "llm2clip_request_seconds",
            "Time of requests.",
            ("route", "status"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.stages = Histogram(
            "llm2clip_stage_seconds",
            "Time of the stages of requests.",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.batches = Histogram(
            "llm2clip_batch_size",
            "Queries per forward pass.",
            ("kind",),
            buckets=_SIZES,
            registry=registry,
        )
        self.queue = Gauge("llm2clip_queue_length", "Queries waiting for the encoder.", registry=registry)
        self.cached = Counter(
            "llm2clip_query_cache_hits", "Query vectors taken from the cache.", registry=registry
        )
        self.encoded = Counter("llm2clip_query_cache_misses", "Query vectors computed.", registry=registry)
        self.rejected = Counter("llm2clip_rejected", "Requests refused.", ("reason",), registry=registry)
        self.generation = Gauge("llm2clip_index_generation", "Generation of the index.", registry=registry)
        self.images = Gauge("llm2clip_index_images", "Images that can be found.", registry=registry)

    @contextmanager
    def stage(self, name: str, took: dict[str, float] | None = None) -> Iterator[None]:
        """Time a stage; ``took`` is given its milliseconds too."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - begun
            self.stages.labels(name).observe(seconds)
            if took is not None:
                took[name] = round(seconds * 1000, 2)

    def exposition(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self.registry)
