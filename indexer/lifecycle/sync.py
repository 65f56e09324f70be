"""``sync``: bring an index up to date with sources, in one transaction."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any, Literal, NamedTuple

from llm2clip.common.files import counted
from llm2clip.indexer.ann.faiss_flat import import_faiss
from llm2clip.indexer.core.encoder_protocol import ImageEncoder, Prepared
from llm2clip.indexer.core.errors import CorpusError
from llm2clip.indexer.core.index_paths import root_of
from llm2clip.indexer.core.results import BadImage, BuildOptions, ChangeReport, Progress
from llm2clip.indexer.corpora.subset import PathListCorpus
from llm2clip.indexer.ingest.decode_pipeline import (
    CommittedVectors,
    UncommittedVectors,
    VectorCache,
    decode_images,
)
from llm2clip.indexer.ingest.encode_batches import (
    AdaptiveBatchSize,
    BackgroundWriter,
    batches_of,
    encode_batch,
)
from llm2clip.indexer.ingest.listing import CommittedSource, Listing, list_source
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
    removed_keys: list[str] = field(default_factory=list)
    """Keys of images that the user removed, the first thousand."""
    unchanged: int = 0
    embedded: int = 0
    """Images that were run through the encoder."""
    reused: int = 0
    """Images whose vector was there, under another key or from a transaction that was not committed."""
    bad: int = 0
    """Images that could not be read, of those that were read."""
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
            "removed_keys": tuple(self.removed_keys),
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

    Each corpus is listed once. Where nothing changed nothing is read but names, sizes and times.

    Corpora that the index does not have become new sources. A new index has a manifest of generation 0.
    """
    result, options = SyncResult(manifest=base), mode.options
    with ExitStack() as stack:
        items = None
        if base.generation:
            items = ItemsReader.of(folder, base)
            stack.callback(items.close)
        works: list[_Work] = []
        for corpus in corpora:
            base, number = _numbered(base, corpus.identity())
            works.append(_Work(corpus, number, _list(corpus, number, items, mode, result)))
            stack.callback(works[-1].listing.changed.close)
        changes = sum(work.listing.changes for work in works)
        if options.require is not None:
            options.require(base.items + changes, base.dim)
        if base.ann is not None and all(work.listing.nothing for work in works):
            return result
        import_faiss()  # before hours of work, not after
        encoder, encodes = mode.encoder() if changes else None, base.items > 0
        if not base.generation and changes >= DRAFT_FROM and encoder is not None and _makes_drafts(encoder):
            base = replace(base, decoding={"margin": 2})
        with mode.begin(folder, base) as transaction:
            for work in works:
                if encoder is not None and work.listing.changes:
                    done = 0
                    with BackgroundWriter(partial(transaction.append, source=work.number)) as writer:
                        size = AdaptiveBatchSize(options.batch_size)
                        caches = _caches(folder, transaction, work.number, items, stack)
                        decoded = decode_images(
                            work.listing.changed,
                            decode=_decode(encoder, drafts=base.drafts),
                            caches=caches,
                            workers=options.workers,
                            size=size,
                        )
                        for outcomes in batches_of(decoded, size):
                            encodes = encode_batch(outcomes, encoder, size, works=encodes)
                            writer.put(outcomes)
                            result.count(outcomes)
                            done += len(outcomes)
                            _tell(options, result, "embedding", done, work.listing.changes)
                _remove(transaction, work, items, result)
            if not transaction.items and (base.items or not base.generation):
                raise CorpusError(_unreadable(folder, works, result))
            total = sum(work.listing.total for work in works)
            _tell(options, result, "writing", total, total)
            result.manifest = commit(transaction, folder, planner=options.planner)
        result.add(transaction)
    return result


def _makes_drafts(encoder: ImageEncoder) -> bool:
    """Whether the encoder's ``prepare`` takes ``draft``; encoders of others may not."""
    try:
        inspect.signature(encoder.prepare).bind(b"", draft=True)
    except TypeError:
        return False
    except ValueError:  # a built-in function without a signature
        return True
    return True


def _decode(encoder: ImageEncoder, *, drafts: bool) -> Callable[[bytes], Prepared]:
    return partial(encoder.prepare, draft=True) if drafts and _makes_drafts(encoder) else encoder.prepare


def _numbered(base: Manifest, identity: Mapping[str, str]) -> tuple[Manifest, int]:
    """The position of a source, and the manifest with it."""
    for number, known in enumerate(base.sources):
        if same_corpus(known, identity):
            return base, number
    return replace(base, sources=(*base.sources, dict(identity))), len(base.sources)


def _list(
    corpus: Corpus, number: int, items: ItemsReader | None, mode: SyncMode, result: SyncResult
) -> Listing:
    committed = None
    if items is not None:
        rows = result.manifest.rows
        committed = CommittedSource(items, source=number, rows=rows, explicit=mode.explicit)
    listing = list_source(
        corpus,
        committed,
        delete_missing=mode.delete_missing,
        progress=lambda total: _tell(mode.options, result, "listing", 0, total),
    )
    empty_list = isinstance(corpus, PathListCorpus) and corpus.folders_are_there
    if not listing.total and not empty_list:
        known = len(listing.gone) if mode.delete_missing else 0
        believed = items is not None and mode.delete_missing and (mode.options.prune or not known)
        if not believed:
            listing.changed.close()
            raise CorpusError(
                unmounted(root_of(corpus.identity()), known) if known else corpus.explain_empty()
            )
    result.unchanged += listing.unchanged + listing.kept
    if listing.kept:
        result.notes.append(f"{counted(listing.kept, 'image')} kept whose folder or file cannot be read now")
    if listing.noted:
        images = counted(listing.noted, "image")
        result.notes.append(f"captions or metadata of {images} were left out: llm2clip-index errors says why")
    result.notes += [*corpus.notes, *filter(None, [corpus.skipped_note()])]
    return listing


def unmounted(root: str, known: int) -> str:
    """What to say of a source that is gone or empty, and of which an index has ``known`` images."""
    return (
        f"{root} looks unmounted: 0 of {known:,} images are there, and nothing was changed. If it was moved:  "
        f"llm2clip-index move {quote(root)} NEW. If the images are gone for good: run update with --prune"
    )


def _caches(
    folder: Path, transaction: Transaction, source: int, items: ItemsReader | None, stack: ExitStack
) -> list[VectorCache]:
    base = transaction.base
    uncommitted = UncommittedVectors(folder, base, source=source, generation=transaction.generation)
    stack.callback(uncommitted.close)
    if items is None:
        return [uncommitted]
    vectors = open_vectors(folder, base.segments, dim=base.dim)
    return [CommittedVectors(items, vectors, source=source), uncommitted]


def _remove(transaction: Transaction, work: _Work, items: ItemsReader | None, result: SyncResult) -> None:
    gone = work.listing.gone
    if items is not None and result.reused_hashes:
        result.moved += sum(hash in result.reused_hashes for (hash,) in items.of_ids("hash", gone))
    result.removed += transaction.remove(gone)
    if work.listing.gone_errors:
        transaction.remove_errors(work.listing.gone_errors, source=work.number)


def _unreadable(folder: Path, works: Sequence[_Work], result: SyncResult) -> str:
    if result.manifest.generation:
        return (
            f"no image of {folder} can be read any more: nothing was changed. If they are gone, delete the index with  "
            f"llm2clip-index delete {quote(str(folder))}"
        )
    some = "; ".join(f"{bad.key}: {bad.reason}" for bad in result.bad_images[:3])
    return f"none of the images in {works[0].corpus.spec} can be read ({some}): nothing was indexed"


def _tell(
    options: BuildOptions,
    result: SyncResult,
    stage: Literal["listing", "loading", "embedding", "writing"],
    done: int,
    total: int,
) -> None:
    if options.on_progress is not None:
        options.on_progress(Progress(stage=stage, done=done, total=total, kept=result.reused, bad=result.bad))
