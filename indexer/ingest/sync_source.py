"""Bringing one source of an index up to date: what is new or changed is embedded, what has gone is taken away."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from llm2clip.indexer.core.encoder_protocol import ImageEncoder
from llm2clip.indexer.core.errors import CorpusError
from llm2clip.indexer.core.results import BadImage, BuildOptions, Progress
from llm2clip.indexer.ingest import reduced_precision as arithmetic
from llm2clip.indexer.ingest.batching import AdaptiveBatchSize, BackgroundWriter
from llm2clip.indexer.ingest.decode_pipeline import Reading, chunks, prepared
from llm2clip.indexer.ingest.encode_batches import embedded
from llm2clip.indexer.ingest.jpeg_draft import ENOUGH, choose_decoding
from llm2clip.indexer.ingest.vector_reuse import CommittedVectors, VectorCache
from llm2clip.indexer.records.record import Corpus, Record
from llm2clip.indexer.storage.generation_writer import GenerationWriter
from llm2clip.indexer.storage.items_reader import NEVER
from llm2clip.indexer.storage.manifest import Manifest
from llm2clip.indexer.storage.outcome import Outcome
from llm2clip.indexer.storage.recovery import Unfinished, Writing

LISTED = 1000
"""Bad images that a report names."""
_AT_ONCE = 10_000
_PARTS = re.compile("[/#]")


@dataclass(kw_only=True)
class ChangeCounts:
    """What was done so far."""

    moved: int = 0
    """Images that went from one key to another."""
    gone: int = 0
    """Images that are no longer in the corpus."""
    unchanged: int = 0
    """Images that were left as they are."""
    embedded: int = 0
    """Images that were run through the encoder."""
    reused: int = 0
    """Images whose vector was there already, under another key or from a change that never finished."""
    bad: int = 0
    """Images that could not be read, of those that were looked at."""
    bad_images: list[BadImage] = field(default_factory=list)
    """The first thousand of them."""
    notes: list[str] = field(default_factory=list)
    """What a person should know about how it was done."""
    hashes: set[bytes] = field(default_factory=set)
    """Of reused images."""

    def count(self, outcomes: list[Outcome]) -> None:
        """Add what became of some records."""
        for outcome in outcomes:
            if outcome.reason is not None:
                self.bad += 1
                if len(self.bad_images) < LISTED:
                    self.bad_images.append(BadImage(key=outcome.record.key, reason=outcome.reason))
            elif not outcome.kept:
                self.embedded += 1
            elif outcome.id is None:
                self.reused += 1
                self.hashes.add(outcome.hash)


@dataclass(frozen=True, kw_only=True)
class ListingDiff:
    """What listing a source found."""

    total: int
    """Images that it has."""
    changed: int
    """Of them, those that are not in the index as they are now."""
    gone: tuple[int, ...] = ()
    """Ids of items that it no longer has."""
    gone_errors: tuple[str, ...] = ()
    """Keys that could not be read and that it no longer has."""

    @property
    def nothing(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.changed or self.gone or self.gone_errors)


class Ingest:
    """Brings one source up to date.

    Args:
        folder: the index.
        corpus: the source.
        source: its position among the sources.
        manifest: the index as it is committed; None for a new one.
        stack: closes what is opened.
        by_hand: whether somebody names the images, so that those that were removed by hand come back.
    """

    def __init__(
        self,
        folder: Path,
        corpus: Corpus,
        *,
        source: int,
        manifest: Manifest | None,
        stack: ExitStack,
        by_hand: bool = False,
    ) -> None:
        self._by_hand = by_hand
        self._folder, self._corpus, self._source, self._stack = folder, corpus, source, stack
        self._committed: CommittedVectors | None = None
        self._manifest = manifest
        if manifest is not None:
            self._committed = stack.enter_context(closing(CommittedVectors(folder, manifest, source=source)))

    def survey(self, *, options: BuildOptions, tally: ChangeCounts, vanish: bool = True) -> ListingDiff:
        """List the source, without reading an image, a caption or metadata.

        Args:
            options: who is told.
            tally: counts what is unchanged.
            vanish: whether images that it does not list have gone.
        """
        total = changed = 0
        closed: set[str] = set()
        for chunk in chunks(self._corpus.records(captions=False)):
            total += len(chunk)
            closed.update(record.key for record in chunk if record.problem is not None)
            if self._committed is not None:
                same = sum(self._committed.unchanged(chunk, by_hand=self._by_hand))
                tally.unchanged += same
                changed += len(chunk) - same
            else:
                changed += len(chunk)
            tell(options, "listing", 0, total, tally)
        committed = self._committed
        if committed is None or not vanish:
            return ListingDiff(total=total, changed=changed)
        items = committed.items.rows(
            f"SELECT id FROM items WHERE source = ? AND removed = {NEVER}", self._source
        )
        ids = np.array([id for (id,) in items], dtype=np.int64)
        gone = ids[~committed.seen[ids]].tolist()
        errors = committed.items.rows(
            f"SELECT key FROM errors WHERE source = ? AND removed = {NEVER}", self._source
        )
        return ListingDiff(
            total=total,
            changed=changed,
            gone=tuple(self._vanished(gone, closed, tally) if closed else gone),
            gone_errors=tuple(key for (key,) in errors if key not in committed.seen_errors),
        )

    def _vanished(self, ids: Sequence[int], closed: AbstractSet[str], tally: ChangeCounts) -> list[int]:
        """Those of some ids whose images have gone, not those in folders or files that cannot be read today."""
        assert self._committed is not None
        found: list[int] = []
        for start in range(0, len(ids), _AT_ONCE):
            keys = self._committed.items.keys(ids[start : start + _AT_ONCE])
            found += [id for id, key in keys.items() if closed.isdisjoint(_around(key))]
        if kept := len(ids) - len(found):
            tally.unchanged += kept
            tally.notes.append(f"{kept:,} images were kept whose folder or file cannot be read today")
        return found

    def apply(
        self,
        writer: GenerationWriter,
        survey: ListingDiff,
        *,
        encoder: Callable[[], ImageEncoder],
        options: BuildOptions,
        tally: ChangeCounts,
    ) -> None:
        """Write what the survey found to have changed; the encoder is only asked for if anything did.

        Raises:
            IndexWriteError: the disk is full, or worse.
        """
        if survey.changed:
            done = 0
            with BackgroundWriter(partial(writer.append, source=self._source)) as writing:
                chosen = self._arithmetic(encoder(), options, survey.changed, tally)
                for outcomes in self._outcomes(writer, chosen, options, survey.changed):
                    writing.put(outcomes)
                    tally.count(outcomes)
                    done += len(outcomes)
                    tell(options, "embedding", done, survey.changed, tally)
        self._take_away(writer, survey, tally)

    def _take_away(self, writer: GenerationWriter, survey: ListingDiff, tally: ChangeCounts) -> None:
        assert self._committed is not None or not survey.gone
        for start in range(0, len(survey.gone), _AT_ONCE):
            ids = survey.gone[start : start + _AT_ONCE]
            if self._committed is not None and tally.hashes:
                hashes = self._committed.items.hashes(ids)
                tally.moved += sum(hash in tally.hashes for hash in hashes)
            tally.gone += writer.remove(ids)
        if survey.gone_errors:
            writer.remove_errors(survey.gone_errors, source=self._source)

    def _outcomes(
        self, writer: GenerationWriter, encoder: ImageEncoder, options: BuildOptions, changed: int
    ) -> Iterator[list[Outcome]]:
        earlier: list[VectorCache] = [self._committed] if self._committed is not None else []
        path = self._folder / writer.base.items_file
        identity = writer.sources[self._source]
        writing = Writing(generation=writer.generation, rows=writer.base.rows)
        earlier.append(
            self._stack.enter_context(
                closing(Unfinished(path, source=identity, dim=writer.base.dim, writing=writing))
            )
        )
        batches = AdaptiveBatchSize(options.batch_size)
        ready = prepared(
            self._changed(),
            encoder=encoder,
            earlier=earlier,
            reading=Reading(workers=options.workers, margin=self._margin(writer, encoder, changed)),
            batches=batches,
        )
        works = self._manifest is not None and self._manifest.items > 0
        return embedded(ready, encoder=encoder, batches=batches, works=works)

    def _arithmetic(
        self, encoder: ImageEncoder, options: BuildOptions, changed: int, tally: ChangeCounts
    ) -> ImageEncoder:
        """The encoder, or the same in quicker arithmetic, as a trial on some images says."""
        if options.quicker is None or changed < arithmetic.ENOUGH:
            return encoder
        trial = arithmetic.try_quicker(encoder, options.quicker, self._corpus.records(captions=False))
        tally.notes.append(trial.text())
        return trial.encoder

    def _margin(self, writer: GenerationWriter, encoder: ImageEncoder, changed: int) -> int:
        """How images are decoded: as those before them, else as a trial on some of them says."""
        if writer.decoding is None and changed >= ENOUGH and not writer.base.items:
            records = self._corpus.records(captions=False)
            writer.decoding = choose_decoding(records, encoder=encoder).to_json()
        return int(writer.decoding["margin"]) if writer.decoding else 0

    def _changed(self) -> Iterator[Record]:
        if self._committed is None:
            yield from self._corpus.records()
            return
        for chunk in chunks(self._corpus.records()):
            for record, same in zip(
                chunk, self._committed.unchanged(chunk, by_hand=self._by_hand), strict=True
            ):
                if not same:
                    yield record


def _around(key: str) -> Iterator[str]:
    """The folders and the container that a key lies in."""
    return (key[: match.start()] for match in _PARTS.finditer(key))


def tell(
    options: BuildOptions,
    stage: Literal["listing", "embedding", "writing"],
    done: int,
    total: int,
    tally: ChangeCounts,
) -> None:
    """Say how far it is, to who wants to know."""
    if options.on_progress is not None:
        options.on_progress(Progress(stage=stage, done=done, total=total, kept=tally.reused, bad=tally.bad))


def require_images(corpus: Corpus, survey: ListingDiff) -> None:
    """Refuse a source without images, such as a disk that is not mounted.

    Raises:
        CorpusError: it has none.
    """
    if not survey.total:
        raise CorpusError(corpus.explain_empty())
