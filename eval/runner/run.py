"""Several encoders on several sets: what is done is kept, what is missing is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from llm2clip.eval.datasets.retrieval_set import RetrievalSet
from llm2clip.eval.results.encoder_record import describe, store_key
from llm2clip.eval.results.records import Lengths, Result, Through, write_result
from llm2clip.eval.results.validation import read_result
from llm2clip.eval.runner.embedding_cache import FeatureStore, Image
from llm2clip.eval.runner.measure import MeasureOptions, Vectors, encode_set, forget_peak, keep_cost, measure

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder


class Reporter(Protocol):
    """Is told how a run gets on."""

    def begin(self, encoder: str, the_set: RetrievalSet) -> None:
        """Encoding and counting begin."""

    def advance(self, side: str, number: int) -> None:
        """So many more ``images`` or ``texts`` are done."""

    def end(self, result: Result, *, fresh: bool) -> None:
        """A result is there; ``fresh`` if it was measured now."""


class NullReporter:
    """A reporter that says nothing."""

    def begin(self, encoder: str, the_set: RetrievalSet) -> None:
        """Nothing."""

    def advance(self, side: str, number: int) -> None:
        """Nothing."""

    def end(self, result: Result, *, fresh: bool) -> None:
        """Nothing."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An encoder to be measured, opened when its turn comes."""

    label: str
    """What tables call it; empty: its own name."""
    open: Callable[[], Encoder]
    """Opens it."""
    parity: str = "native"
    """Whether it repeats its original's mistakes."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where things go and how they are counted."""

    out: Path
    """Folder of results, one JSON per encoder and set."""
    cache: Path
    """Folder of vectors."""
    through: tuple[Path, ...] = ()
    """Indexes over the images. Of several encoders each takes those that it made."""
    where: str | None = None
    """Filter under which the indexes are searched."""
    lengths: bool = True
    """Whether to split by length and, where captions are long, to ask again with their beginnings."""
    measure: MeasureOptions = field(default_factory=MeasureOptions)
    """How to count."""


def run(
    candidates: Sequence[Candidate],
    sets: Sequence[RetrievalSet],
    *,
    options: RunOptions,
    reporter: Reporter | None = None,
) -> Iterator[Result]:
    """Measure every encoder on every set, one encoder in memory at a time; yield each result once it is written.

    Vectors are kept: a second run encodes nothing, an interrupted one goes on where it stopped.

    Raises:
        ValueError: An encoder cannot be opened, or a set cannot be encoded.
        OSError: A file cannot be read or written.
    """
    reporter = reporter or NullReporter()
    digests: dict[Image, bytes] = {}
    for candidate in candidates:
        forget_peak()
        encoder = candidate.open()
        record = describe(encoder, label=candidate.label, parity=candidate.parity)
        store = FeatureStore(options.cache, key=store_key(record), dim=record.dim, digests=digests)
        for the_set in sets:
            reporter.begin(record.label, the_set)
            vectors = encode_set(encoder, the_set, store=store, progress=reporter.advance)
            result = measure(the_set, vectors, encoder=record, options=options.measure)
            result = replace(
                result,
                lengths=_lengths(encoder, the_set, vectors, result=result, store=store, options=options),
                through=_through(encoder, the_set, vectors, options, alone=len(candidates) == 1),
            )
            result = keep_cost(result, _earlier(options.out / result.file_name))
            write_result(result, options.out)
            reporter.end(result, fresh=True)
            yield result
        del encoder


def _lengths(
    encoder: Encoder,
    the_set: RetrievalSet,
    vectors: Vectors,
    *,
    result: Result,
    store: FeatureStore,
    options: RunOptions,
) -> Lengths | None:
    from llm2clip.eval.runner.length_breakdown import measure_lengths

    found = result.direction("t2i")
    if found is None or not options.lengths:
        return None
    how = options.measure.resampling
    return measure_lengths(encoder, the_set, vectors, found=found, store=store, resampling=how)


def _through(
    encoder: Encoder, the_set: RetrievalSet, vectors: Vectors, options: RunOptions, *, alone: bool
) -> tuple[Through, ...]:
    from llm2clip.eval.runner.index_recall import measure_through
    from llm2clip.indexer.core.errors import EncoderMismatchError

    found = []
    for place in options.through:
        try:
            one = measure_through(
                place, the_set, vectors, info=encoder.info, ks=options.measure.ks, where=options.where
            )
            found.append(one)
        except EncoderMismatchError:
            if alone:
                raise
    return tuple(found)


def _earlier(path: Path) -> Result | None:
    try:
        return read_result(path)
    except (OSError, ValueError):
        return None
