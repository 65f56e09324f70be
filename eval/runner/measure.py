"""One encoder on one set: encode what is not on disk, count, resample, and write down under which conditions."""

from __future__ import annotations

import hashlib
import resource
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llm2clip.eval.datasets.protocols import declared
from llm2clip.eval.datasets.retrieval_set import PARTIAL, RetrievalSet
from llm2clip.eval.metrics.best_rank import BestRank
from llm2clip.eval.metrics.blockwise_scores import Embeddings
from llm2clip.eval.metrics.hubness import Correction, Corrector, corrected_metrics, hubness
from llm2clip.eval.metrics.rank_positions import Positives, RankPositions, rank_positions
from llm2clip.eval.metrics.recall import Unmatched, direction_metrics
from llm2clip.eval.results.encoder_record import code_version, libraries, machine
from llm2clip.eval.results.records import (
    Adjusted,
    CostRecord,
    Direction,
    DirectionResult,
    EncoderRecord,
    Hubs,
    RecallAt,
    Result,
    SetRecord,
    pack,
)
from llm2clip.eval.results.train_overlap import known_overlap
from llm2clip.eval.runner.embedding_cache import Encoded, FeatureStore, encode_images, encode_texts
from llm2clip.eval.stats.bootstrap import Resampling, bootstrap_intervals, query_clusters

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder

_TIMED = 64
"""Items below which a rate says nothing."""
_HUB_LIST = 10
"""Answers to a query over which hubs are counted."""

Extra: TypeAlias = tuple[Hubs | None, tuple[Adjusted, ...]]
"""Hubs, and recall after corrections for them."""


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """How to count."""

    ks: tuple[int, ...] = (1, 5, 10)
    """Lengths of answer lists."""
    hubs: bool = True
    """Whether to count hubs and correct for them: four more passes over the scores."""
    resampling: Resampling = field(default_factory=Resampling)
    """How intervals are drawn."""


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Both sides of a set, encoded."""

    images: Encoded
    """The images."""
    texts: Encoded
    """The captions."""

    @property
    def embeddings(self) -> Embeddings:
        """For the metrics."""
        return Embeddings(texts=self.texts.vectors, images=self.images.vectors)


def encode_set(
    encoder: Encoder,
    the_set: RetrievalSet,
    *,
    store: FeatureStore,
    progress: Callable[[str, int], None] | None = None,
) -> Vectors:
    """Vectors of both sides; ``progress`` is told ``"images"`` or ``"texts"`` and how many more are done.

    Raises:
        ValueError: An image or text cannot be read.
    """

    def told(side: str) -> Callable[[int], None]:
        return lambda number: progress(side, number) if progress else None

    images = encode_images(encoder, the_set.images, store=store, progress=told("images"))
    texts = encode_texts(encoder, the_set.captions, store=store, progress=told("texts"))
    return Vectors(images=images, texts=texts)


def measure(
    the_set: RetrievalSet, vectors: Vectors, *, encoder: EncoderRecord, options: MeasureOptions | None = None
) -> Result:
    """Count what the vectors of a set find, in both directions.

    Raises:
        ValueError: The scores are not finite.
    """
    options = options or MeasureOptions()
    # Products where the encoder is, if that is a GPU.
    scores = replace(vectors.embeddings, device=encoder.device if encoder.device.startswith("cuda") else None)
    pairs = Positives.of(list(the_set.caption_images), shape=scores.shape)
    forward, backward = rank_positions(scores, positives=pairs)
    assert backward is not None
    owners = query_clusters(pairs), np.arange(len(the_set.images))
    extras = _extras(scores, pairs, options)
    seen = known_overlap((encoder.name, encoder.repository), the_set.protocol)
    return Result(
        set=set_record(the_set, vectors),
        encoder=encoder,
        directions=(
            _direction("t2i", forward, owners[0], options, extras[0]),
            _direction("i2t", backward, owners[1], options, extras[1]),
        ),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        code=code_version(),
        libraries=libraries(),
        machine=machine(),
        seed=options.resampling.seed,
        resamples=options.resampling.times,
        cost=_cost(vectors),
        overlap=seen.level.value,
        overlap_note=f"{seen.why} ({seen.source})" if seen.source else seen.why,
    )


def set_record(the_set: RetrievalSet, vectors: Vectors) -> SetRecord:
    """What was measured on, with the hash of all of it."""
    protocol = declared(the_set.protocol.removesuffix(PARTIAL))
    return SetRecord(
        protocol=the_set.protocol,
        language=the_set.language,
        complete=the_set.complete,
        images=len(the_set.images),
        captions=len(the_set.captions),
        sha256=content_sha256(vectors.images.digests, vectors.texts.digests, the_set.caption_images),
        rule=protocol.rule if protocol else "as given",
        files=tuple(the_set.files.items()),
        notes=the_set.notes,
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
    name: Direction,
    found: RankPositions,
    owner: NDArray[np.int64],
    options: MeasureOptions,
    extra: Extra,
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
    sides = [
        tuple(
            Adjusted(
                name=kind.value,
                transductive=True,
                recall=tuple((k, getattr(one, side).recall[k].pessimistic) for k in options.ks),
            )
            for kind, one in found.items()
        )
        for side in ("text_to_image", "image_to_text")
    ]
    return (hubs[0], sides[0]), (hubs[1], sides[1])


def _hubs(scores: Embeddings) -> Hubs:
    found = hubness(scores, k=min(_HUB_LIST, scores.shape[1]))
    return Hubs(skewness=found.skewness, never=found.never, top_share=found.top_share)


def _cost(vectors: Vectors) -> CostRecord:
    import torch

    def rate(side: Encoded) -> float | None:
        spent = side.spent
        return spent.encoded / spent.seconds if spent.encoded >= _TIMED and spent.seconds > 0 else None

    return CostRecord(
        images_encoded=vectors.images.spent.encoded,
        texts_encoded=vectors.texts.spent.encoded,
        images_per_second=rate(vectors.images),
        texts_per_second=rate(vectors.texts),
        peak_memory_mb=peak_memory_mb(),
        threads=torch.get_num_threads(),
    )


def peak_memory_mb() -> int:
    """Most memory of this process since :func:`forget_peak`, in millions of bytes."""
    # Kilobytes on Linux, bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return round(peak / 1e6)


def forget_peak() -> None:
    """Begin to watch the memory of this process anew, where the system can (Linux), as between two encoders."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def keep_cost(result: Result, earlier: Result | None) -> Result:
    """A result whose vectors came from disk keeps what encoding them cost when they were made, on the same machine."""
    cost, old = result.cost, earlier.cost if earlier else None
    if earlier is None or old is None or cost is None:
        return result
    if (earlier.encoder.key, earlier.machine) != (result.encoder.key, result.machine):
        return result
    if not (cost.images_encoded or cost.texts_encoded):
        return replace(result, cost=replace(old, images_encoded=0, texts_encoded=0))
    if old.threads != cost.threads:
        return result
    kept = replace(
        cost,
        images_per_second=cost.images_per_second or old.images_per_second,
        texts_per_second=cost.texts_per_second or old.texts_per_second,
        peak_memory_mb=max(cost.peak_memory_mb, old.peak_memory_mb),
    )
    return replace(result, cost=kept)
