"""Several encoders on several data sets: what is done is kept, what is missing is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from llm2clip.eval.datasets.retrieval_set import RetrievalSet
from llm2clip.eval.results.encoder_record import describe, store_key
from llm2clip.eval.results.records import IndexRecall, Lengths, Result, write_result
from llm2clip.eval.results.validation import read_result
from llm2clip.eval.runner.embedding_cache import (
    CachedTexts,
    EmbeddingCache,
    Image,
    encode_images,
    encode_texts,
)
from llm2clip.eval.runner.measure import MeasureOptions, Vectors, measure
from llm2clip.eval.runner.throughput import Throughput, keep_cost, measure_throughput, reset_peak_memory

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder

_TIMED_ITEMS = 128
"""Images and captions that an encoder is timed on."""


class Reporter(Protocol):
    """Is told the progress of a run."""

    def begin(self, encoder: str, dataset: RetrievalSet) -> None:
        """Encoding and counting begin."""

    def advance(self, tower: str, number: int) -> None:
        """So many more ``images`` or ``texts`` are done."""

    def end(self, result: Result) -> None:
        """A result was written."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An encoder to be measured, opened when its turn comes."""

    label: str
    """What tables call it; empty: its own name."""
    open: Callable[[], Encoder]
    preprocessing: str = "native"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where things go and what is measured."""

    out: Path
    cache: Path
    indexes: tuple[Path, ...] = ()
    """Indexes over the images. Of several encoders each takes those that it made."""
    where: str | None = None
    lengths: bool = True
    throughput: bool = False
    """Time each encoder, on images and captions of the first data set."""
    measure: MeasureOptions = field(default_factory=MeasureOptions)


def run(
    candidates: Sequence[Candidate],
    sets: Sequence[RetrievalSet],
    *,
    options: RunOptions,
    reporter: Reporter | None = None,
) -> Iterator[Result]:
    """Measure every encoder on every set, one encoder in memory at a time; yield each result once it is written.

    Vectors are cached: a second run encodes nothing, an interrupted one continues where it stopped.
    """
    digests: dict[Image, bytes] = {}
    for candidate in candidates:
        reset_peak_memory()
        encoder = candidate.open()
        record = describe(encoder, label=candidate.label, parity=candidate.preprocessing)
        cache = EmbeddingCache(options.cache, key=store_key(record), dim=record.dim, digests=digests)
        timed = _throughput(encoder, sets[0]) if options.throughput and sets else None
        for dataset in sets:
            told: list[Callable[[int], None] | None] = [None, None]
            if reporter:
                reporter.begin(record.label, dataset)
                told = [partial(reporter.advance, tower) for tower in ("images", "texts")]
            images = encode_images(encoder, dataset.images, cache=cache, progress=told[0])
            texts = encode_texts(encoder, dataset.captions, cache=cache, progress=told[1])
            vectors = Vectors(images=images, texts=texts)
            result = measure(dataset, vectors, encoder=record, options=options.measure, timed=timed)
            result = replace(
                result,
                lengths=_lengths(CachedTexts(encoder, cache), dataset, vectors, result, options),
                index_recall=_index_recall(encoder, dataset, vectors, options, alone=len(candidates) == 1),
            )
            result = keep_cost(result, _earlier(options.out / result.file_name))
            write_result(result, options.out)
            if reporter:
                reporter.end(result)
            yield result
        del encoder


def _throughput(encoder: Encoder, dataset: RetrievalSet) -> Throughput:
    images = [image.read() for image in dataset.images[:_TIMED_ITEMS]]
    return measure_throughput(encoder, images=images, texts=dataset.captions[:_TIMED_ITEMS])


def _lengths(
    texts: CachedTexts, dataset: RetrievalSet, vectors: Vectors, result: Result, options: RunOptions
) -> Lengths | None:
    from llm2clip.eval.runner.lengths import measure_lengths

    found = result.direction("t2i")
    if found is None or not options.lengths:
        return None
    return measure_lengths(
        texts,
        list(dataset.captions),
        images=vectors.images.vectors,
        positives=list(dataset.caption_images),
        found=found,
        max_tokens=result.encoder.max_text_tokens,
        resampling=options.measure.resampling,
    )


def _index_recall(
    encoder: Encoder, dataset: RetrievalSet, vectors: Vectors, options: RunOptions, *, alone: bool
) -> tuple[IndexRecall, ...]:
    from llm2clip.eval.runner.index_recall import measure_index
    from llm2clip.indexer.core.errors import EncoderMismatchError

    found = []
    for path in options.indexes:
        try:
            one = measure_index(
                path, dataset, vectors, info=encoder.info, ks=options.measure.ks, where=options.where
            )
            found.append(one)
        except EncoderMismatchError:
            if alone:
                raise
    return tuple(found)


def _earlier(path: Path) -> Result | None:
    try:
        return read_result(path) if path.is_file() else None
    except (OSError, ValueError):
        return None
