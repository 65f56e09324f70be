"""``build_index``: a corpus in, an index on disk out."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from llm2clip.indexer.corpus import open_corpus
from llm2clip.indexer.earlier import Earlier, sha256_of
from llm2clip.indexer.errors import (
    CorpusError,
    EncoderMismatchError,
    IndexConflictError,
    IndexDamagedError,
    IndexerError,
    IndexNotFoundError,
    IndexVersionError,
    IndexWriteError,
)
from llm2clip.indexer.faiss_index import import_faiss
from llm2clip.indexer.generation import GenerationWriter, Origin
from llm2clip.indexer.items import ItemsReader
from llm2clip.indexer.manifest import (
    MANIFEST,
    Manifest,
    committed_generation,
    read_manifest,
    write_manifest,
)
from llm2clip.indexer.pipeline import Outcome, chunks, embedded, prepared
from llm2clip.indexer.records import Corpus, same_corpus
from llm2clip.indexer.reports import BadPicture, BuildOptions, BuildReport, Progress
from llm2clip.indexer.seam import ImageEncoder
from llm2clip.indexer.store import (
    LOCK,
    claim,
    encoder_mismatch,
    generation_of,
    items_name,
    lock,
    read_meta,
    remove_generation,
    remove_generations,
    unfinished,
)

_LISTED = 1000


def build_index(
    corpus: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    encoder: ImageEncoder,
    options: BuildOptions | None = None,
) -> BuildReport:
    """Build the index of a corpus, or bring it up to date; a build that was killed goes on where it stopped.

    The change is committed in one step at the end. Until then the index is what it was before.

    Args:
        corpus: a folder, a tar, a folder of tars, a brace range of tars, or ``sample:``.
        path: folder of the index; made if it does not exist.
        encoder: anything like ``llm2clip.encoders.Encoder``.
        options: how to build; None: as ``BuildOptions()``.

    Raises:
        CorpusError: the corpus does not exist, has no pictures, or none that can be read.
        EncoderMismatchError: there is an index built with another encoder.
        IndexConflictError: there is an index of another corpus, there are other files, or another process writes.
        IndexWriteError: the disk is full, or worse; what was done is kept.
        FaissNotInstalledError: FAISS is not installed.
    """
    import_faiss()  # before hours of work, not after
    source = open_corpus(corpus)
    folder = Path(path).expanduser().absolute()
    made = claim(folder)
    try:
        with lock(folder):
            return _Build(source, folder, encoder=encoder, options=options or BuildOptions()).run()
    finally:
        if made and not (set(os.listdir(folder)) - {LOCK}):
            with suppress(OSError):
                os.unlink(folder / LOCK)
                os.rmdir(folder)


class _Build:
    """One run of ``build_index``, under the lock."""

    def __init__(self, corpus: Corpus, folder: Path, *, encoder: ImageEncoder, options: BuildOptions) -> None:
        self._corpus, self._folder, self._encoder, self._options = corpus, folder, encoder, options
        self._origin = Origin(
            corpus=corpus.identity(),
            encoder=dict(encoder.info.identity()),
            encoder_source=options.encoder_source or encoder.info.name,
            anew=options.overwrite,
        )
        self._began = time.perf_counter()
        self._notes = list(corpus.notes)
        self._kept = self._embedded = self._bad_count = 0
        self._bad: list[BadPicture] = []

    def run(self) -> BuildReport:
        """Look at what is there, list the corpus, and build if anything changed."""
        manifest = self._present()
        with ExitStack() as stack:
            committed = self._committed(manifest, stack) if manifest else None
            total = self._survey(committed)
            if manifest and committed and total is None:
                self._note_source(manifest)
                rows = committed.items.errors(limit=_LISTED)
                self._bad = [
                    BadPicture(key=row.key, reason=row.reason) for row in rows if row.stage != "sidecar"
                ]
                return self._report(manifest.items, manifest.bad, up_to_date=True)
            if not total:
                self._discard()
                raise CorpusError(self._corpus.emptiness())
            earlier = self._unfinished(stack)
            if committed is not None and manifest is not None and self._trusted(manifest):
                earlier.append(committed)
            try:
                return self._write(earlier, total)
            except CorpusError:
                stack.close()
                self._discard()
                raise

    def _present(self) -> Manifest | None:
        """The index that is there, if it may be built upon; None if there is none or it is not to be used."""
        try:
            manifest = read_manifest(self._folder)
        except IndexNotFoundError:
            return None
        except (IndexDamagedError, IndexVersionError):
            if self._options.overwrite:
                return None
            raise
        if self._options.overwrite:
            return None
        self._refuse(manifest.corpus, manifest.encoder, "an index")
        return manifest

    def _note_source(self, manifest: Manifest) -> None:
        """Write down where the encoder lies now, if that was said and is another place."""
        source = self._options.encoder_source
        if source and source != manifest.encoder_source:
            encoder = self._origin.encoder
            write_manifest(self._folder, replace(manifest, encoder=encoder, encoder_source=source))

    def _refuse(self, corpus: object, encoder: object, what: str) -> None:
        """Refuse to build upon ``what`` if it is of another corpus or encoder."""
        if not isinstance(corpus, dict) or not isinstance(encoder, dict):
            raise IndexDamagedError(
                f"{self._folder} holds {what} that says nothing of its origin. Use --overwrite"
            )
        if not same_corpus(corpus, self._origin.corpus):
            raise IndexConflictError(
                f"{self._folder} holds {what} of {corpus.get('spec')}, got {self._corpus.spec}: choose another place "
                "with --index, or replace it with --overwrite"
            )
        if problem := encoder_mismatch(encoder, self._origin.encoder):
            raise EncoderMismatchError(
                f"{self._folder} {problem}: build with the first, choose another place with --index, or replace it "
                "with --overwrite"
            )

    def _committed(self, manifest: Manifest, stack: ExitStack) -> Earlier | None:
        try:
            return stack.enter_context(closing(Earlier.committed(self._folder, manifest)))
        except IndexDamagedError as error:
            self._notes.append(f"the index was damaged, so every picture was embedded again: {error}")
            return None

    def _trusted(self, manifest: Manifest) -> bool:
        """Whether the files that vectors are taken over from are those that were committed."""
        for name in (manifest.items_file, *(segment.file for segment in manifest.segments)):
            if sha256_of(self._folder / name) != manifest.files[name].sha256:
                self._notes.append(f"{name} was damaged, so every picture was embedded again")
                return False
        return True

    def _survey(self, committed: Earlier | None) -> int | None:
        """Count the pictures by listing them; None if all are in the committed index as they are now."""
        total = same = 0
        for chunk in chunks(self._corpus.records(captions=False)):
            total += len(chunk)
            same += committed.unchanged(chunk) if committed else 0
            self._tell("listing", 0, total)
        if (
            committed is None
            or same < total
            or total != committed.items.count() + committed.items.count_bad()
        ):
            return total
        return None if self._whole() else total

    def _whole(self) -> bool:
        """Whether all files of the committed index have the size they should have."""
        files = read_manifest(self._folder).files
        with suppress(OSError):
            return all(os.path.getsize(self._folder / name) == record.bytes for name, record in files.items())
        return False

    def _unfinished(self, stack: ExitStack) -> list[Earlier]:
        """The build that got furthest of those that never finished; the others are deleted."""
        found: list[tuple[int, int]] = []
        generations = unfinished(self._folder, after=committed_generation(self._folder))
        for generation in generations:
            done = self._usable(generation)
            if done:
                found.append((done, generation))
        best = max(found, default=(0, 0))[1]
        for generation in generations:
            if generation != best:
                remove_generation(self._folder, generation)
        if not best:
            return []
        earlier = Earlier.unfinished(self._folder, generation=best, dim=self._encoder.info.dim)
        return [stack.enter_context(closing(earlier))]

    def _usable(self, generation: int) -> int:
        """How many pictures of an unfinished build can be taken over; refuses one of another corpus or encoder."""
        try:
            items = ItemsReader(self._folder / items_name(generation), writable=True)
            with closing(items):
                corpus, encoder = read_meta(items, "corpus"), read_meta(items, "encoder")
                anew, done = bool(read_meta(items, "anew")), items.count()
        except IndexerError:
            return 0  # killed before it had written anything
        if self._options.overwrite:
            same = same_corpus(corpus, self._origin.corpus) and not encoder_mismatch(
                encoder, self._origin.encoder
            )
            return done if same and anew else 0
        self._refuse(corpus, encoder, "an unfinished build")
        return done

    def _write(self, earlier: list[Earlier], total: int) -> BuildReport:
        generation = self._next_generation()
        writer = GenerationWriter(self._folder, generation=generation, origin=self._origin)
        try:
            for outcomes in self._outcomes(earlier):
                writer.append(outcomes)
                self._count(outcomes)
                self._tell("embedding", writer.items + writer.bad, total)
            if not writer.items:
                raise CorpusError(self._unreadable())
            self._tell("writing", writer.items + writer.bad, total)
            manifest = writer.commit()
        except BaseException:  # Ctrl-C above all: what was done is kept
            with suppress(IndexWriteError):
                writer.checkpoint()
            raise
        finally:
            writer.close()
            if not writer.items:
                remove_generation(self._folder, generation)
        return self._report(manifest.items, manifest.bad, up_to_date=False)

    def _outcomes(self, earlier: list[Earlier]) -> Iterator[list[Outcome]]:
        options = self._options
        workers = options.workers or min(16, os.cpu_count() or 1)
        ready = prepared(
            self._corpus.records(),
            encoder=self._encoder,
            earlier=earlier,
            workers=workers,
            window=3 * options.batch_size + workers,
        )
        return embedded(ready, encoder=self._encoder, batch_size=options.batch_size)

    def _next_generation(self) -> int:
        found = (generation_of(name) for name in os.listdir(self._folder))
        return 1 + max(
            (number for number in found if number is not None), default=committed_generation(self._folder)
        )

    def _count(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.reason is not None:
                self._bad_count += 1
                if len(self._bad) < _LISTED:
                    self._bad.append(BadPicture(key=outcome.record.key, reason=outcome.reason))
            elif outcome.kept:
                self._kept += 1
            else:
                self._embedded += 1

    def _tell(self, stage: Literal["listing", "embedding", "writing"], done: int, total: int) -> None:
        if self._options.on_progress is not None:
            self._options.on_progress(
                Progress(stage=stage, done=done, total=total, kept=self._kept, bad=self._bad_count)
            )

    def _discard(self) -> None:
        """Delete what is not the committed index."""
        try:
            keep = {MANIFEST, *read_manifest(self._folder).files}
        except IndexNotFoundError:
            keep = set()
        except IndexerError:
            return
        remove_generations(self._folder, keep=frozenset(keep))

    def _unreadable(self) -> str:
        some = "; ".join(f"{bad.key}: {bad.reason}" for bad in self._bad[:3])
        return f"none of the pictures in {self._corpus.spec} can be read ({some}): nothing was indexed"

    def _report(self, items: int, bad: int, *, up_to_date: bool) -> BuildReport:
        passed_over = self._corpus.passed_over_note()
        return BuildReport(
            path=str(self._folder),
            corpus=self._corpus.spec,
            encoder=self._encoder.info.name,
            up_to_date=up_to_date,
            items=items,
            embedded=self._embedded,
            kept=self._kept if not up_to_date else items,
            bad=bad,
            bad_pictures=tuple(self._bad),
            notes=(*self._notes, *filter(None, [passed_over])),
            seconds=time.perf_counter() - self._began,
        )
