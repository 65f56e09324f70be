"""``sync``: bring an index up to date with sources, in one transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llm2clip.indexer.ann.faiss_flat import import_faiss
from llm2clip.indexer.core.encoder_protocol import ImageEncoder
from llm2clip.indexer.core.errors import CorpusError
from llm2clip.indexer.core.results import BadImage, BuildOptions, ChangeReport, Progress
from llm2clip.indexer.corpora.subset import PathListCorpus
from llm2clip.indexer.ingest.decode_pipeline import decode_images
from llm2clip.indexer.ingest.encode_batches import (
    AdaptiveBatchSize,
    BackgroundWriter,
    batches_of,
    encode_batch,
)
from llm2clip.indexer.ingest.listing import CommittedSource, Listing, list_source
from llm2clip.indexer.ingest.vector_reuse import CommittedVectors, UncommittedVectors, VectorCache
from llm2clip.indexer.lifecycle.commit import commit
from llm2clip.indexer.records.record import Corpus, same_corpus
from llm2clip.indexer.storage.items_reader import ItemsReader
from llm2clip.indexer.storage.manifest import Manifest
from llm2clip.indexer.storage.outcome import Outcome
from llm2clip.indexer.storage.transaction import Transaction
from llm2clip.indexer.storage.vector_segments import open_vectors

LISTED = 1000
"""Bad images that a report names."""
DRAFT_FROM = 512
"""A new index of so many images or more decodes JPEGs as drafts, see ``ImageEncoder.prepare``."""
_AT_ONCE = 10_000


@dataclass(frozen=True, kw_only=True)
class SyncMode:
    """How ``sync`` treats its sources."""

    encoder: Callable[[], ImageEncoder]
    """Gives the encoder; called if an image has to be read."""
    options: BuildOptions
    delete_missing: bool = True
    """Whether images that a source does not list are removed."""
    explicit: bool = False
    """Whether the user names the images: those that were removed by hand come back."""
    begin: Callable[[Path, Manifest], Transaction] = Transaction.begin
    """Begins the transaction."""


@dataclass(kw_only=True)
class SyncResult:
    """What ``sync`` did."""

    manifest: Manifest
    """The index afterwards."""
    committed: bool = False
    """Whether anything was committed."""
    new: int = 0
    changed: int = 0
    described: int = 0
    moved: int = 0
    """Images that went from one key to another."""
    removed: int = 0
    unchanged: int = 0
    embedded: int = 0
    """Images that were run through the encoder."""
    reused: int = 0
    """Images whose vector was there, under another key or from a transaction that was not committed."""
    bad: int = 0
    """Images that could not be read, of those that were looked at."""
    bad_images: list[BadImage] = field(default_factory=list)
    """The first thousand of them."""
    notes: list[str] = field(default_factory=list)
    reused_hashes: set[bytes] = field(default_factory=set)
    began: float = field(default_factory=time.perf_counter)

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """Add the outcomes of some records."""
        for outcome in outcomes:
            if outcome.reason is not None:
                self.bad += 1
                if len(self.bad_images) < LISTED:
                    self.bad_images.append(BadImage(key=outcome.record.key, reason=outcome.reason))
            elif not outcome.kept:
                self.embedded += 1
            elif outcome.id is None:
                self.reused += 1
                self.reused_hashes.add(outcome.hash)

    def add(self, transaction: Transaction) -> None:
        """Add what a transaction committed."""
        self.committed = True
        self.new, self.changed, self.described = transaction.new, transaction.changed, transaction.described
        self.removed += transaction.lost

    def report(self, folder: Path) -> ChangeReport:
        """The result for users."""
        values: dict[str, Any] = {
            **vars(self),
            "path": str(folder),
            "changed_anything": self.committed,
            "bad_images": tuple(self.bad_images),
            "items": self.manifest.items,
            "tombstones": self.manifest.tombstones,
            "notes": tuple(dict.fromkeys(self.notes)),
            "seconds": time.perf_counter() - self.began,
        }
        return ChangeReport(**{each.name: values[each.name] for each in fields(ChangeReport)})


class _Work(NamedTuple):
    """A source that was listed."""

    corpus: Corpus
    number: int  # its position among the sources
    listing: Listing


def sync(folder: Path, base: Manifest, corpora: Iterable[Corpus], mode: SyncMode) -> SyncResult:
    """Bring an index up to date with some corpora, in one transaction, under its lock.

    Each corpus is listed once. Where nothing changed nothing is read but names, sizes and times. Corpora that
    the index does not have become new sources. The manifest of a new index has the generation 0.
    """
    result, options = SyncResult(manifest=base), mode.options
    sources = [dict(source) for source in base.sources]
    with ExitStack() as stack:
        items = None
        if base.generation:
            items = ItemsReader(folder / base.items_file, generation=base.generation)
            stack.callback(items.close)
        listed: list[_Work] = []
        for corpus in corpora:
            number = _number(sources, corpus.identity())
            listed.append(_Work(corpus, number, _list(corpus, number, base, items, mode, result)))
            stack.callback(listed[-1].listing.changed.close)
        changes = sum(work.listing.changes for work in listed)
        if options.require is not None:
            options.require(base.items + changes, base.dim)
        if base.ann is not None and all(work.listing.nothing for work in listed):
            return result
        import_faiss()  # before hours of work, not after
        encoder, encodes = mode.encoder() if changes else None, base.items > 0
        with mode.begin(folder, base) as transaction:
            for source in sources[len(base.sources) :]:
                transaction.add_source(source)
            if not base.generation and changes >= DRAFT_FROM:
                transaction.decoding = {"margin": 2}
            for work in listed:
                if encoder is not None and work.listing.changes:
                    done = 0
                    with BackgroundWriter(partial(transaction.append, source=work.number)) as writer:
                        caches = _caches(folder, transaction, work.number, items, stack)
                        size = AdaptiveBatchSize(options.batch_size)
                        for outcomes in _decoded(work.listing, transaction, encoder, caches, options, size):
                            encodes = encode_batch(outcomes, encoder, size, works=encodes)
                            writer.put(outcomes)
                            result.count(outcomes)
                            done += len(outcomes)
                            _tell(options, result, "embedding", done, work.listing.changes)
                _remove(transaction, work, items, result)
            if not transaction.items and (base.items or not base.generation):
                raise CorpusError(_unreadable(folder, listed, result))
            total = sum(work.listing.total for work in listed)
            _tell(options, result, "writing", total, total)
            result.manifest = commit(transaction, folder, planner=options.planner)
        result.add(transaction)
    return result


def _number(sources: list[dict[str, str]], identity: Mapping[str, str]) -> int:
    """The position of a source, which is added if it is new."""
    for number, known in enumerate(sources):
        if same_corpus(known, identity):
            return number
    sources.append(dict(identity))
    return len(sources) - 1


def _list(
    corpus: Corpus, number: int, base: Manifest, items: ItemsReader | None, mode: SyncMode, result: SyncResult
) -> Listing:
    committed = None
    if items is not None:
        committed = CommittedSource(items, source=number, rows=base.rows, explicit=mode.explicit)
    listing = list_source(
        corpus,
        committed,
        delete_missing=mode.delete_missing,
        progress=lambda total: _tell(mode.options, result, "listing", 0, total),
    )
    empty_list = isinstance(corpus, PathListCorpus) and corpus.folders_are_there
    if not listing.total and not empty_list:
        listing.changed.close()
        raise CorpusError(corpus.explain_empty())
    result.unchanged += listing.unchanged + listing.kept
    if listing.kept:
        result.notes.append(f"{listing.kept:,} images were kept whose folder or file cannot be read now")
    result.notes += [*corpus.notes, *filter(None, [corpus.skipped_note()])]
    return listing


def _caches(
    folder: Path, transaction: Transaction, source: int, items: ItemsReader | None, stack: ExitStack
) -> list[VectorCache]:
    base = transaction.base
    uncommitted = UncommittedVectors(
        folder / base.items_file,
        source=transaction.sources[source],
        dim=base.dim,
        generation=transaction.generation,
        first=base.rows,
    )
    stack.callback(uncommitted.close)
    if items is None:
        return [uncommitted]
    vectors = open_vectors(folder, base.segments, dim=base.dim)
    return [CommittedVectors(items, vectors, source=source), uncommitted]


def _decoded(
    listing: Listing,
    transaction: Transaction,
    encoder: ImageEncoder,
    caches: Sequence[VectorCache],
    options: BuildOptions,
    size: AdaptiveBatchSize,
) -> Iterator[list[Outcome]]:
    draft = transaction.decoding is not None and transaction.decoding["margin"] > 0
    decoded = decode_images(
        listing.changed,
        decode=partial(encoder.prepare, draft=True) if draft else encoder.prepare,
        caches=caches,
        workers=options.workers,
        batch_size=lambda: size.size,
    )
    return batches_of(decoded, size)


def _remove(transaction: Transaction, work: _Work, items: ItemsReader | None, result: SyncResult) -> None:
    for start in range(0, len(work.listing.gone), _AT_ONCE):
        ids = work.listing.gone[start : start + _AT_ONCE]
        if items is not None and result.reused_hashes:
            result.moved += sum(hash in result.reused_hashes for hash in items.hashes(ids))
        result.removed += transaction.remove(ids)
    if work.listing.gone_errors:
        transaction.remove_errors(work.listing.gone_errors, source=work.number)


def _unreadable(folder: Path, works: Sequence[_Work], result: SyncResult) -> str:
    if result.manifest.generation:
        return f"no image of {folder} can be read any more: nothing was changed. If they are gone, delete the index"
    some = "; ".join(f"{bad.key}: {bad.reason}" for bad in result.bad_images[:3])
    return f"none of the images in {works[0].corpus.spec} can be read ({some}): nothing was indexed"


def _tell(
    options: BuildOptions,
    result: SyncResult,
    stage: Literal["listing", "embedding", "writing"],
    done: int,
    total: int,
) -> None:
    if options.on_progress is not None:
        options.on_progress(Progress(stage=stage, done=done, total=total, kept=result.reused, bad=result.bad))
