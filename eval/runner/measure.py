"""One encoder on one data set: embed images and texts, count, resample, and record the conditions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from llm2clip.eval.datasets.protocols import declared
from llm2clip.eval.datasets.retrieval_set import PARTIAL, RetrievalSet
from llm2clip.eval.metrics.blockwise_scores import Embeddings
from llm2clip.eval.metrics.hubness import Correction, Corrector, corrected_metrics, hubness
from llm2clip.eval.metrics.rank_positions import Positives, RankPositions, rank_positions
from llm2clip.eval.metrics.recall import BestRank, Unmatched, direction_metrics
from llm2clip.eval.results.encoder_record import code_version, known_overlap, libraries, machine
from llm2clip.eval.results.records import (
    Adjusted,
    Direction,
    DirectionResult,
    EncoderRecord,
    Hubs,
    RecallAt,
    Result,
    SetRecord,
    pack,
)
from llm2clip.eval.runner.embedding_cache import Encoded
from llm2clip.eval.runner.throughput import Throughput, run_cost
from llm2clip.eval.stats.bootstrap import Resampling, bootstrap_intervals, query_clusters

_HUB_LIST = 10
"""Answers to a query over which hubs are counted."""

Extra: TypeAlias = tuple[Hubs | None, tuple[Adjusted, ...]]
"""Hubs, and recall after corrections for them."""


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """How to count."""

    ks: tuple[int, ...] = (1, 5, 10)
    hubs: bool = True
    resampling: Resampling = field(default_factory=Resampling)


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Images and texts of a set, encoded."""

    images: Encoded
    texts: Encoded

    @property
    def embeddings(self) -> Embeddings:
        """For the metrics."""
        return Embeddings(texts=self.texts.vectors, images=self.images.vectors)


def measure(
    dataset: RetrievalSet,
    vectors: Vectors,
    *,
    encoder: EncoderRecord,
    options: MeasureOptions | None = None,
    timed: Throughput | None = None,
) -> Result:
    """Count what the vectors of a data set find, in both directions."""
    options = options or MeasureOptions()
    # Products where the encoder is, if that is a GPU.
    scores = replace(vectors.embeddings, device=encoder.device if encoder.device.startswith("cuda") else None)
    pairs = Positives.of(list(dataset.caption_images), shape=scores.shape)
    forward, backward = rank_positions(scores, positives=pairs)
    assert backward is not None
    extras = _extras(scores, pairs, options)
    seen = known_overlap((encoder.name, encoder.repository), dataset.protocol)
    return Result(
        set=set_record(dataset, vectors),
        encoder=encoder,
        directions=(
            _direction("t2i", forward, query_clusters(pairs), options, extras[0]),
            _direction("i2t", backward, np.arange(len(dataset.images)), options, extras[1]),
        ),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        code=code_version(),
        libraries=libraries(),
        machine=machine(),
        seed=options.resampling.seed,
        resamples=options.resampling.times,
        cost=run_cost(vectors.images.spent, vectors.texts.spent, timed),
        overlap=seen.level.value,
        overlap_note=f"{seen.why} ({seen.source})" if seen.source else seen.why,
    )


def set_record(dataset: RetrievalSet, vectors: Vectors) -> SetRecord:
    """The record of a data set, with the hash of all of it."""
    protocol = declared(dataset.protocol.removesuffix(PARTIAL))
    return SetRecord(
        protocol=dataset.protocol,
        language=dataset.language,
        complete=dataset.complete,
        images=len(dataset.images),
        captions=len(dataset.captions),
        sha256=content_sha256(vectors.images.digests, vectors.texts.digests, dataset.caption_images),
        rule=protocol.rule if protocol else "as given",
        files=tuple(dataset.files.items()),
        notes=dataset.notes,
    )


def content_sha256(
    images: Sequence[str], captions: Sequence[str], caption_images: Sequence[Sequence[int]]
) -> str:
    """SHA-256 of a set: content of its images in order, its captions in order, and what belongs together."""
    digest = hashlib.sha256(f"{len(images)} {len(captions)}".encode())
    for part in (*images, *captions, *(" ".join(map(str, sorted(right))) for right in caption_images)):
        digest.update(part.encode() + b"\n")
    return digest.hexdigest()


def _direction(
    name: Direction, found: RankPositions, owner: NDArray[np.int64], options: MeasureOptions, extra: Extra
) -> DirectionResult:
    where = BestRank.of(found)
    asked = where.right > 0
    counted = direction_metrics(found, ks=options.ks, unmatched=Unmatched.SKIP)
    hits = np.stack([where.hits(k)[asked] for k in options.ks])
    intervals = bootstrap_intervals(hits, clusters=owner[asked], resampling=options.resampling)
    median = counted.median_rank
    return DirectionResult(
        direction=name,
        queries=counted.queries,
        gallery=counted.gallery,
        unmatched=counted.unmatched,
        recall=tuple(
            RecallAt(
                k=k,
                value=counted.recall[k].pessimistic,
                low=interval.low,
                high=interval.high,
                expected=counted.recall[k].expected,
                optimistic=counted.recall[k].optimistic,
            )
            for k, interval in zip(options.ks, intervals, strict=True)
        ),
        mean_recall=counted.mean_recall,
        median_rank=median if np.isfinite(median) else None,
        map_at_r=counted.map_at_r.pessimistic if counted.map_at_r else None,
        hubs=extra[0],
        adjusted=extra[1],
        ranks=pack(where.ranks()[asked]),
        clusters=pack(owner[asked]),
    )


def _extras(scores: Embeddings, pairs: Positives, options: MeasureOptions) -> tuple[Extra, Extra]:
    """Hubs, and recall after corrections for them, of both directions."""
    if not options.hubs:
        return (None, ()), (None, ())
    hubs = [_hubs(one) for one in (scores, scores.swapped())]
    found = {
        kind: corrected_metrics(
            scores,
            positives=pairs,
            corrector=Corrector(correction=kind),
            ks=options.ks,
            unmatched=Unmatched.SKIP,
        )
        for kind in Correction
    }
    both = [
        tuple(
            Adjusted(
                name=kind.value,
                transductive=True,
                recall=tuple((k, getattr(one, direction).recall[k].pessimistic) for k in options.ks),
            )
            for kind, one in found.items()
        )
        for direction in ("text_to_image", "image_to_text")
    ]
    return (hubs[0], both[0]), (hubs[1], both[1])


def _hubs(scores: Embeddings) -> Hubs:
    found = hubness(scores, k=min(_HUB_LIST, scores.shape[1]))
    return Hubs(skewness=found.skewness, never=found.never, top_share=found.top_share)
