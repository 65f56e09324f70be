"""``update_index`` and ``add_images``: an index that lives. Neither copies the index."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llm2clip.indexer.ann import index_file
from llm2clip.indexer.core.encoder_protocol import ImageEncoder
from llm2clip.indexer.core.errors import CorpusError, EncoderMismatchError
from llm2clip.indexer.core.results import BuildOptions, ChangeReport
from llm2clip.indexer.corpora.open import open_corpus, reopen_corpus
from llm2clip.indexer.corpora.subset import PathListCorpus, SubfolderCorpus
from llm2clip.indexer.ingest.sync_source import ChangeCounts, Ingest, ListingDiff, require_images, tell
from llm2clip.indexer.records.files import ending, image_endings
from llm2clip.indexer.records.record import Corpus, same_corpus
from llm2clip.indexer.storage.generation_writer import GenerationWriter, closing_writer
from llm2clip.indexer.storage.items_reader import NEVER, ItemsReader
from llm2clip.indexer.storage.manifest import DEFAULT_PLAN, Manifest, encoder_mismatch
from llm2clip.indexer.storage.transaction import begin_write, check_files, open_for_write

_AT_ONCE = 10_000


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Something to bring up to date."""

    corpus: Corpus
    vanish: bool
    """Whether what it does not list has gone."""


def update_index(
    path: str | os.PathLike[str],
    *,
    encoder: ImageEncoder | Callable[[], ImageEncoder],
    options: BuildOptions | None = None,
) -> ChangeReport:
    """Bring an index up to date with all its corpora.

    Images are compared by size and time of change, then by content; what was moved or copied keeps its vector.
    Where nothing changed nothing is read but names, sizes and times.

    Args:
        path: folder of the index.
        encoder: the one that it was built with, or what loads it; it is only asked for if an image has to be embedded.
        options: how; None: as ``BuildOptions()``.

    Raises:
        CorpusError: a corpus is not there, or has no images any more.
        EncoderMismatchError: ``encoder`` is another one.
        IndexConflictError: another process writes.
        IndexDamagedError: the index is damaged.
        IndexWriteError: the disk is full, or worse; what was done is kept.
    """

    def parts(manifest: Manifest) -> Iterator[_Part]:
        for number, source in enumerate(manifest.sources):
            yield _Part(corpus=_reopened(Path(path), manifest, number, source), vanish=True)

    return _Update(path, encoder=encoder, options=options).run(parts)


def add_images(
    path: str | os.PathLike[str],
    corpora: Sequence[str | os.PathLike[str]],
    *,
    encoder: ImageEncoder | Callable[[], ImageEncoder],
    options: BuildOptions | None = None,
) -> ChangeReport:
    """Add images to an index, or take those that changed anew; nothing is taken away.

    Args:
        path: folder of the index.
        corpora: images, folders inside a folder that the index has, or anything that ``open_corpus`` takes.
        encoder: the one that the index was built with, or what loads it.
        options: how; None: as ``BuildOptions()``.

    Raises:
        CorpusError: there are no such images.
        EncoderMismatchError: ``encoder`` is another one.
        IndexConflictError: another process writes.
        IndexDamagedError: the index is damaged.
        IndexWriteError: the disk is full, or worse; what was done is kept.
    """

    def parts(manifest: Manifest) -> Iterator[_Part]:
        for corpus in _opened([os.fspath(each) for each in corpora], manifest):
            yield _Part(corpus=corpus, vanish=False)

    return _Update(path, encoder=encoder, options=options, by_hand=True).run(parts)


def fill(
    path: str | os.PathLike[str],
    corpora: Sequence[Corpus],
    *,
    encoder: ImageEncoder,
    options: BuildOptions | None = None,
) -> ChangeReport:
    """Add the images of opened corpora; those without any are passed over."""

    def parts(_: Manifest) -> Iterator[_Part]:
        for corpus in corpora:
            if corpus.peek() is not None:
                yield _Part(corpus=corpus, vanish=False)

    return _Update(path, encoder=encoder, options=options).run(parts)


def _reopened(folder: Path, manifest: Manifest, number: int, source: Mapping[str, str]) -> Corpus:
    if source["kind"] != "stdin":
        return reopen_corpus(source)
    path = folder.expanduser().absolute() / manifest.items_file

    def known() -> Iterator[str]:
        items = ItemsReader(path, generation=manifest.generation)
        with closing(items):
            last = ""
            statement = f"AND source = ? AND key > ? AND removed = {NEVER} ORDER BY key LIMIT {_AT_ONCE}"
            while rows := items.visible("key", statement, number, last):
                yield from (key for (key,) in rows)
                last = rows[-1][0]

    return PathListCorpus(known, source=source, missing=False)


def _opened(specs: Sequence[str], manifest: Manifest) -> Iterator[Corpus]:
    """The corpora that are named; images by the source that they belong to."""
    named: dict[int, list[str]] = {}
    for spec in specs:
        place = os.path.abspath(os.path.expanduser(spec))
        if "://" not in spec and os.path.isfile(place) and ending(place) in image_endings():
            named.setdefault(_owner(place, manifest), []).append(place)
            continue
        corpus = open_corpus(spec)
        owner = _owner(place, manifest) if corpus.kind == "folder" else -1
        if owner >= 0 and str(corpus.root) != manifest.sources[owner]["root"]:
            corpus = SubfolderCorpus(corpus, source=manifest.sources[owner])
        yield corpus
    for number, paths in named.items():
        source: Mapping[str, str] = {"kind": "stdin", "spec": "-", "root": os.getcwd()}
        if number >= 0:
            source = manifest.sources[number]
        else:
            source = next((each for each in manifest.sources if each["kind"] == "stdin"), source)
        yield PathListCorpus(lambda paths=paths: paths, source=source)  # type: ignore[misc]


def _owner(place: str, manifest: Manifest) -> int:
    """The folder among the sources that a path lies in, or is; -1 if none."""
    for number, source in enumerate(manifest.sources):
        if source["kind"] == "folder":
            below = os.path.relpath(place, source["root"]).split(os.sep)
            if below == ["."] or not any(part.startswith(".") for part in below):
                return number
    return -1


class _Update:
    """One change of an index that is there."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        encoder: ImageEncoder | Callable[[], ImageEncoder],
        options: BuildOptions | None,
        by_hand: bool = False,
    ) -> None:
        self._folder = Path(path).expanduser().absolute()
        self._given, self._options, self._by_hand = encoder, options or BuildOptions(), by_hand
        self._tally, self._notes = ChangeCounts(), list[str]()
        self._began = time.perf_counter()

    @cached_property
    def _encoder(self) -> ImageEncoder:
        encoder = self._given() if callable(self._given) else self._given
        if problem := encoder_mismatch(self._manifest.encoder, encoder.info.identity()):
            raise EncoderMismatchError(
                f"{self._folder} {problem}: use the first, or build another index with  "
                "llm2clip-index build --from"
            )
        return encoder

    def run(self, parts: Callable[[Manifest], Iterator[_Part]]) -> ChangeReport:
        """List all that is to be looked at, then write what changed."""
        with open_for_write(self._folder) as found, ExitStack() as stack:
            self._manifest = manifest = check_files(self._folder, found)
            work: list[tuple[_Part, Ingest, ListingDiff, int]] = []
            numbers = Numbers(manifest)
            for part in parts(manifest):
                number = numbers.of(part.corpus.identity())
                ingest = Ingest(
                    self._folder,
                    part.corpus,
                    source=number,
                    manifest=manifest,
                    stack=stack,
                    by_hand=self._by_hand,
                )
                survey = ingest.survey(options=self._options, tally=self._tally, vanish=part.vanish)
                if not (isinstance(part.corpus, PathListCorpus) and part.corpus.folders_are_there):
                    require_images(part.corpus, survey)
                self._notes += [*part.corpus.notes, *filter(None, [part.corpus.skipped_note()])]
                work.append((part, ingest, survey, number))
            if all(survey.nothing for _, _, survey, _ in work) and manifest.ann is not None:
                return change_report(self._folder, manifest, self._tally, self._began, notes=self._notes)
            if any(survey.changed for _, _, survey, _ in work):
                index_file.ready(DEFAULT_PLAN)
                _ = self._encoder
            with closing_writer(begin_write(self._folder, manifest)) as writer:
                return self._write(writer, work, numbers)

    def _write(
        self,
        writer: GenerationWriter,
        work: Sequence[tuple[_Part, Ingest, ListingDiff, int]],
        numbers: Numbers,
    ) -> ChangeReport:
        for source in numbers.new:
            writer.source(source)
        for _, ingest, survey, _ in work:
            if not survey.nothing:
                ingest.apply(
                    writer,
                    survey,
                    encoder=lambda: self._encoder,
                    options=self._options,
                    tally=self._tally,
                )
        if self._manifest.items and not writer.base.items + writer.appended - writer.removed:
            raise CorpusError(
                f"no image of {self._folder} can be read any more: nothing was changed. If that is so, delete it"
            )
        tell(self._options, "writing", 1, 1, self._tally)
        written = writer.commit(planner=self._options.planner)
        return change_report(
            self._folder, written, self._tally, self._began, notes=self._notes, writer=writer
        )


class Numbers:
    """Positions of sources, old and new."""

    def __init__(self, manifest: Manifest) -> None:
        self._old = manifest.sources
        self.new: list[Mapping[str, str]] = []
        """Those that the index does not have yet, in order."""

    def of(self, source: Mapping[str, str]) -> int:
        """The position of a source; at the end if it is new."""
        for number, known in enumerate((*self._old, *self.new)):
            if same_corpus(dict(known), dict(source)):
                return number
        self.new.append(dict(source))
        return len(self._old) + len(self.new) - 1


def change_report(
    folder: Path,
    manifest: Manifest,
    tally: ChangeCounts,
    began: float,
    *,
    notes: Sequence[str] = (),
    writer: GenerationWriter | None = None,
) -> ChangeReport:
    """What was done, in numbers."""
    return ChangeReport(
        path=str(folder),
        changed_anything=writer is not None,
        new=writer.new if writer else 0,
        changed=writer.changed if writer else 0,
        described=writer.described if writer else 0,
        moved=tally.moved,
        removed=tally.gone + (writer.lost if writer else 0),
        unchanged=tally.unchanged,
        embedded=tally.embedded,
        reused=tally.reused,
        bad=tally.bad,
        bad_images=tuple(tally.bad_images),
        items=manifest.items,
        tombstones=manifest.tombstones,
        notes=tuple(dict.fromkeys([*notes, *tally.notes])),
        seconds=time.perf_counter() - began,
    )
