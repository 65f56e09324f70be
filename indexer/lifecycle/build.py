"""``build_index``: a corpus in, an index on disk out."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from llm2clip.indexer.ann import index_file
from llm2clip.indexer.core.encoder_protocol import ImageEncoder
from llm2clip.indexer.core.errors import (
    CorpusError,
    EncoderMismatchError,
    IndexConflictError,
    IndexDamagedError,
    IndexNotFoundError,
    IndexVersionError,
)
from llm2clip.indexer.core.results import BadImage, BuildOptions, BuildReport
from llm2clip.indexer.corpora.open import open_corpus
from llm2clip.indexer.ingest.batching import peak_memory
from llm2clip.indexer.ingest.sync_source import (
    LISTED,
    ChangeCounts,
    Ingest,
    ListingDiff,
    require_images,
    tell,
)
from llm2clip.indexer.records.record import Corpus, same_corpus
from llm2clip.indexer.storage.generation_writer import GenerationWriter, closing_writer
from llm2clip.indexer.storage.index_folder import LOCK, create_or_check_folder, lock
from llm2clip.indexer.storage.items_reader import ItemsReader
from llm2clip.indexer.storage.manifest import (
    DEFAULT_PLAN,
    Manifest,
    encoder_mismatch,
    read_manifest,
    write_manifest,
)
from llm2clip.indexer.storage.migrate_v2 import bring_up_to_date
from llm2clip.indexer.storage.provenance import BuildInfo
from llm2clip.indexer.storage.transaction import (
    begin_build,
    begin_write,
    check_files,
    discard,
    rollback_uncommitted,
    unfinished_builds,
)


def build_index(
    corpus: str | os.PathLike[str] | Corpus,
    path: str | os.PathLike[str],
    *,
    encoder: ImageEncoder,
    options: BuildOptions | None = None,
) -> BuildReport:
    """Build the index of a corpus, or bring it up to date; a build that was killed goes on where it stopped.

    The change is committed in one step at the end. Until then the index is what it was before.

    Args:
        corpus: anything that ``open_corpus`` takes, or what it gave.
        path: folder of the index; made if it does not exist.
        encoder: anything like ``llm2clip.encoders.Encoder``.
        options: how to build; None: as ``BuildOptions()``.

    Raises:
        CorpusError: the corpus does not exist, has no images, or none that can be read.
        EncoderMismatchError: there is an index built with another encoder.
        IndexConflictError: there is an index of another corpus, there are other files, or another process writes.
        IndexWriteError: the disk is full, or worse; what was done is kept.
        FaissNotInstalledError: FAISS is not installed.
    """
    index_file.ready(DEFAULT_PLAN)  # before hours of work, not after
    source = corpus if isinstance(corpus, Corpus) else open_corpus(corpus)
    folder = Path(path).expanduser().absolute()
    made = create_or_check_folder(folder)
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
        self._origin = BuildInfo(
            corpus=corpus.identity(),
            encoder=dict(encoder.info.identity()),
            encoder_source=options.encoder_source or encoder.info.name,
            anew=options.overwrite,
        )
        self._began = time.perf_counter()
        self._notes = list(corpus.notes)
        self._tally = ChangeCounts()

    def run(self) -> BuildReport:
        """Look at what is there, list the corpus, and build if anything changed."""
        manifest = self._present()
        if manifest is not None:
            try:
                return self._again(manifest)
            except IndexDamagedError as error:
                self._notes.append(f"the index was damaged, so every image was embedded again: {error}")
                self._tally = ChangeCounts()
        with ExitStack() as stack:
            ingest = Ingest(self._folder, self._corpus, source=0, manifest=None, stack=stack)
            survey = ingest.survey(options=self._options, tally=self._tally)
            try:
                require_images(self._corpus, survey)
                self._require_room(survey.total)
                started = self._started()
                with closing_writer(begin_build(self._folder, self._origin, started=started)) as writer:
                    return self._write(writer, ingest, survey)
            except CorpusError:
                stack.close()
                discard(self._folder)
                raise

    def _again(self, manifest: Manifest) -> BuildReport:
        """Bring the index that is there up to date."""
        manifest = check_files(self._folder, manifest)
        rollback_uncommitted(self._folder, manifest)
        sources = [dict(source) for source in manifest.sources]
        number = next(n for n, source in enumerate(sources) if same_corpus(source, self._origin.corpus))
        with ExitStack() as stack:
            ingest = Ingest(self._folder, self._corpus, source=number, manifest=manifest, stack=stack)
            survey = ingest.survey(options=self._options, tally=self._tally)
            require_images(self._corpus, survey)
            self._require_room(manifest.items + survey.changed)
            if self._options.replan:
                manifest = replace(manifest, ann=None)
            if survey.nothing and manifest.ann is not None:
                manifest = self._note_source(manifest)
                return self._report(manifest, up_to_date=True)
            encoder, place = self._origin.encoder, self._origin.encoder_source
            with closing_writer(
                begin_write(self._folder, replace(manifest, encoder=encoder, encoder_source=place))
            ) as writer:
                return self._write(writer, ingest, survey)

    def _require_room(self, images: int) -> None:
        if self._options.require is not None:
            self._options.require(images, self._encoder.info.dim)

    def _write(self, writer: GenerationWriter, ingest: Ingest, survey: ListingDiff) -> BuildReport:
        ingest.apply(writer, survey, encoder=lambda: self._encoder, options=self._options, tally=self._tally)
        if not writer.base.items + writer.appended - writer.removed:
            raise CorpusError(self._unreadable())
        tell(self._options, "writing", survey.total, survey.total, self._tally)
        return self._report(writer.commit(planner=self._options.planner), up_to_date=False)

    def _present(self) -> Manifest | None:
        """The index that is there, if it may be built upon; None if there is none or it is not to be used."""
        try:
            if not self._options.overwrite:
                bring_up_to_date(self._folder)
            manifest = read_manifest(self._folder)
        except IndexNotFoundError:
            return None
        except (IndexDamagedError, IndexVersionError):
            if self._options.overwrite:
                return None
            raise
        if self._options.overwrite:
            return None
        self._refuse(manifest.sources, manifest.encoder, "an index")
        return manifest

    def _note_source(self, manifest: Manifest) -> Manifest:
        """Write down where the encoder lies now, if that was said and is another place."""
        source = self._options.encoder_source
        if source and source != manifest.encoder_source:
            manifest = replace(manifest, encoder=self._origin.encoder, encoder_source=source)
            write_manifest(self._folder, manifest)
        return manifest

    def _refuse(self, corpora: object, encoder: object, what: str) -> None:
        """Refuse to build upon ``what`` if it is of another corpus or encoder."""
        if not isinstance(corpora, tuple) or not isinstance(encoder, dict):
            raise IndexDamagedError(
                f"{self._folder} holds {what} that says nothing of its origin. Use --overwrite"
            )
        if not any(same_corpus(dict(corpus), self._origin.corpus) for corpus in corpora):
            raise IndexConflictError(
                f"{self._folder} holds {what} of {corpora[0].get('spec')}, got {self._corpus.spec}: choose another "
                "place with --index, add to it with  llm2clip-index add, or replace it with --overwrite"
            )
        if problem := encoder_mismatch(encoder, self._origin.encoder):
            raise EncoderMismatchError(
                f"{self._folder} {problem}: build with the first, choose another place with --index, or replace it "
                "with --overwrite"
            )

    def _started(self) -> str | None:
        """The items file of a build that never finished and can be gone on with; refuses one of something else."""
        for name, said in unfinished_builds(self._folder).items():
            if not self._options.overwrite:
                self._refuse((said["corpus"],), said["encoder"], "an unfinished build")
                return name
            same = same_corpus(said["corpus"], self._origin.corpus)
            if said["anew"] and same and not encoder_mismatch(said["encoder"], self._origin.encoder):
                return name
        return None

    def _unreadable(self) -> str:
        some = "; ".join(f"{bad.key}: {bad.reason}" for bad in self._tally.bad_images[:3])
        return f"none of the images in {self._corpus.spec} can be read ({some}): nothing was indexed"

    def _report(self, manifest: Manifest, *, up_to_date: bool) -> BuildReport:
        skipped = self._corpus.skipped_note()
        return BuildReport(
            path=str(self._folder),
            corpus=self._corpus.spec,
            encoder=self._encoder.info.name,
            up_to_date=up_to_date,
            items=manifest.items,
            embedded=self._tally.embedded,
            kept=manifest.items - self._tally.embedded,
            bad=manifest.bad,
            bad_images=bad_images(self._folder, manifest),
            notes=(*self._notes, *self._tally.notes, *filter(None, [skipped])),
            seconds=time.perf_counter() - self._began,
            peak_memory=peak_memory(),
        )


def bad_images(folder: Path, manifest: Manifest) -> tuple[BadImage, ...]:
    """The first thousand images that could not be read, by key, with reasons."""
    if not manifest.bad:
        return ()
    items = ItemsReader(folder / manifest.items_file, generation=manifest.generation)
    try:
        rows = items.errors(limit=LISTED)
    finally:
        items.close()
    return tuple(BadImage(key=row.key, reason=row.reason) for row in rows if row.stage != "sidecar")
