"""``build_index``: build the index of a corpus, or bring it up to date."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from llm2clip.indexer.core.encoder_protocol import ImageEncoder
from llm2clip.indexer.core.errors import (
    CorpusError,
    EncoderMismatchError,
    IndexConflictError,
    IndexDamagedError,
    IndexNotFoundError,
)
from llm2clip.indexer.core.index_paths import remember
from llm2clip.indexer.core.results import BadImage, BuildOptions, BuildReport
from llm2clip.indexer.corpora.open import open_corpus
from llm2clip.indexer.lifecycle.sync import LISTED, SyncMode, SyncResult, sync
from llm2clip.indexer.records.record import Corpus, same_corpus
from llm2clip.indexer.storage.index_folder import (
    check_files,
    clean,
    committed_files,
    create_or_check_folder,
    settle_items,
    unfinished_builds,
)
from llm2clip.indexer.storage.items_reader import ItemsReader
from llm2clip.indexer.storage.lock import LOCK, lock
from llm2clip.indexer.storage.manifest import (
    Manifest,
    empty_manifest,
    encoder_mismatch,
    read_manifest,
    write_manifest,
)
from llm2clip.indexer.storage.transaction import Transaction, roll_back


def build_index(
    corpus: str | os.PathLike[str] | Corpus,
    path: str | os.PathLike[str],
    *,
    encoder: ImageEncoder,
    options: BuildOptions | None = None,
) -> BuildReport:
    """Build the index of a corpus, or bring it up to date; a killed build resumes where it stopped.

    The change is committed in one step at the end. Until then the index is what it was before.

    Args:
        corpus: anything that ``open_corpus`` takes, or what it gave.
        path: folder of the index; created if it does not exist.
        encoder: anything like ``llm2clip.encoders.Encoder``.
        options: how to build; None: as ``BuildOptions()``.

    Raises:
        CorpusError: the corpus does not exist, has no images, or none that can be read.
        EncoderMismatchError: there is an index built with another encoder.
        IndexConflictError: there is an index of another corpus, there are other files, or another process writes.
        IndexWriteError: an I/O error occurred (for example a full disk); what was done is kept.
        FaissNotInstalledError: FAISS is not installed.
    """
    began, options = time.perf_counter(), options or BuildOptions()
    source = corpus if isinstance(corpus, Corpus) else open_corpus(corpus)
    folder = Path(path).expanduser().absolute()
    new = empty_manifest(
        sources=[source.identity()],
        encoder=dict(encoder.info.identity()),
        encoder_source=options.encoder_source or encoder.info.name,
    )
    remember(new.sources, encoder=new.encoder_source)
    mode = SyncMode(encoder=lambda: encoder, options=options)
    created, notes, result = create_or_check_folder(folder), list[str](), None
    try:
        with lock(folder):
            settle_items(folder)
            manifest = None if options.overwrite else _committed(folder, new)
            if manifest is not None:
                try:
                    result = sync(folder, _base(folder, manifest, new, options), [source], mode)
                    renamed = options.encoder_source not in (None, manifest.encoder_source)
                    if not result.committed and (renamed or result.manifest.sources != manifest.sources):
                        write_manifest(folder, result.manifest)  # the encoder was moved, or more is excluded
                except IndexDamagedError as error:
                    notes.append(f"the index was damaged, so every image was embedded again: {error}")
            if result is None:
                try:
                    result = sync(
                        folder, new, [source], replace(mode, begin=partial(_begin, options=options))
                    )
                except CorpusError:
                    clean(folder, needed=committed_files(folder))
                    raise
            result.notes[:0] = notes
            return _report(folder, source, encoder, result, began)
    finally:
        if created and not (set(os.listdir(folder)) - {LOCK}):
            with suppress(OSError):
                os.unlink(folder / LOCK)
                os.rmdir(folder)


def _committed(folder: Path, new: Manifest) -> Manifest | None:
    """The index that is there; None if there is none."""
    try:
        manifest = read_manifest(folder)
    except IndexNotFoundError:
        return None
    _refuse_other(folder, manifest.sources, manifest.encoder, new, what="an index")
    return manifest


def _base(folder: Path, manifest: Manifest, new: Manifest, options: BuildOptions) -> Manifest:
    """What is there, checked, with the encoder as it is called now."""
    manifest = check_files(folder, manifest)
    roll_back(folder, manifest)
    if options.replan:
        manifest = replace(manifest, ann=None)
    sources = tuple(
        {**known, **_excluded(new.sources[0])} if same_corpus(known, new.sources[0]) else known
        for known in manifest.sources
    )
    return replace(manifest, encoder=new.encoder, encoder_source=new.encoder_source, sources=sources)


def _excluded(source: Mapping[str, str]) -> dict[str, str]:
    """What is excluded of a source now."""
    return {"exclude": source["exclude"]} if "exclude" in source else {}


def _begin(folder: Path, base: Manifest, options: BuildOptions) -> Transaction:
    """Go on with an unfinished build of the same images, or begin a new index; refuses a build of something else."""
    [corpus] = base.sources
    for name, begun in unfinished_builds(folder).items():
        if not options.overwrite:
            _refuse_other(folder, [begun["corpus"]], begun["encoder"], base, what="an unfinished build")
            return Transaction.resume(folder, base, name)
        same = same_corpus(begun["corpus"], corpus) and not encoder_mismatch(begun["encoder"], base.encoder)
        if begun["anew"] and same:
            return Transaction.resume(folder, base, name)
    return Transaction.create(folder, base, overwrite=options.overwrite)


def _refuse_other(
    folder: Path,
    corpora: Sequence[Mapping[str, str]],
    encoder: Mapping[str, Any],
    new: Manifest,
    *,
    what: str,
) -> None:
    """Refuse to build upon something of another corpus or encoder."""
    [corpus] = new.sources
    if not any(same_corpus(known, corpus) for known in corpora):
        raise IndexConflictError(
            f"{folder} holds {what} of {corpora[0].get('spec')}, got {corpus['spec']}: choose another "
            "folder with --index, add to it with  llm2clip-index add, or replace it with --overwrite"
        )
    if problem := encoder_mismatch(encoder, new.encoder):
        raise EncoderMismatchError(
            f"{folder} {problem}: build with the first, choose another folder with --index, or replace it "
            "with --overwrite"
        )


def _report(
    folder: Path, corpus: Corpus, encoder: ImageEncoder, result: SyncResult, began: float
) -> BuildReport:
    manifest = result.manifest
    return BuildReport(
        path=str(folder),
        corpus=corpus.spec,
        encoder=encoder.info.name,
        up_to_date=not result.committed,
        items=manifest.items,
        embedded=result.embedded,
        kept=manifest.items - result.embedded,
        bad=manifest.bad,
        bad_images=_bad_images(folder, manifest),
        new=max(0, result.new - result.moved),
        changed=result.changed + result.described,
        moved=result.moved,
        removed=max(0, result.removed - result.moved),
        unchanged=result.unchanged,
        notes=tuple(result.notes),
        seconds=time.perf_counter() - began,
        peak_memory=peak_memory(),
    )


def _bad_images(folder: Path, manifest: Manifest) -> tuple[BadImage, ...]:
    """The first thousand images that could not be read, by key, with reasons."""
    if not manifest.bad:
        return ()
    items = ItemsReader.of(folder, manifest)
    try:
        rows = items.errors(limit=LISTED)
    finally:
        items.close()
    return tuple(BadImage(key=row.key, reason=row.reason) for row in rows if row.stage != "sidecar")


def peak_memory() -> int | None:
    """Peak resident memory of this process in bytes, mapped files included; None if unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
