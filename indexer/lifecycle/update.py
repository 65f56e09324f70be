"""``update_index`` and ``add_images``: incremental changes. The index is not copied."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from llm2clip.indexer.core.encoder_protocol import ImageEncoder
from llm2clip.indexer.core.errors import CorpusError, EncoderMismatchError
from llm2clip.indexer.core.index_paths import remember, require_named
from llm2clip.indexer.core.results import BuildOptions, ChangeReport
from llm2clip.indexer.corpora.open import open_corpus, reopen_corpus
from llm2clip.indexer.corpora.subset import PathListCorpus, SubfolderCorpus
from llm2clip.indexer.lifecycle.sync import SyncMode, sync, unmounted
from llm2clip.indexer.records.files import ending, image_endings
from llm2clip.indexer.records.record import Corpus
from llm2clip.indexer.storage.index_folder import check_files
from llm2clip.indexer.storage.items_reader import ItemsReader
from llm2clip.indexer.storage.items_schema import NEVER
from llm2clip.indexer.storage.manifest import Manifest, encoder_mismatch
from llm2clip.indexer.storage.transaction import open_for_write

_AT_ONCE = 10_000


def update_index(
    path: str | os.PathLike[str],
    *,
    encoder: ImageEncoder | Callable[[], ImageEncoder],
    options: BuildOptions | None = None,
) -> ChangeReport:
    """Sync an index with its sources.

    Images are compared by size and time of change, then by content; moved and copied ones keep their vector. Where
    nothing changed nothing is read but names, sizes and times.

    Args:
        path: folder of the index.
        encoder: the one that it was built with, or a function that loads it; called if an image has to be read.
        options: None: as ``BuildOptions()``.

    Raises:
        CorpusError: a source does not exist, or has no images any more, and ``options.prune`` is not set.
        EncoderMismatchError: ``encoder`` is another one.
        IndexConflictError: another process writes.
        IndexDamagedError: the index is damaged.
        IndexWriteError: an I/O error occurred (for example a full disk); what was done is kept.
    """
    options = options or BuildOptions()

    def sources(folder: Path, base: Manifest) -> Iterator[Corpus]:
        for number, source in enumerate(base.sources):
            known = _missing(folder, base, number)
            if known is None:
                yield _reopened(folder, base, number)
            elif options.prune or not known:
                yield PathListCorpus(tuple, source=source)
            else:
                raise CorpusError(unmounted(source["root"], known))

    return _sync(path, sources, SyncMode(encoder=_loader(encoder), options=options))


def add_images(
    path: str | os.PathLike[str],
    corpora: Sequence[str | os.PathLike[str]],
    *,
    encoder: ImageEncoder | Callable[[], ImageEncoder],
    options: BuildOptions | None = None,
) -> ChangeReport:
    """Add images to an index, or index changed ones again; nothing is removed.

    Args:
        path: folder of the index.
        corpora: images, folders inside a folder that the index has, or anything that ``open_corpus`` takes.
        encoder: the one that the index was built with, or a function that loads it.
        options: None: as ``BuildOptions()``.

    Raises:
        CorpusError: there are no such images.
        EncoderMismatchError: ``encoder`` is another one.
        IndexConflictError: another process writes.
        IndexDamagedError: the index is damaged.
        IndexWriteError: an I/O error occurred (for example a full disk); what was done is kept.
    """
    options = options or BuildOptions()
    mode = SyncMode(encoder=_loader(encoder), options=options, delete_missing=False, explicit=True)
    return _sync(path, lambda _, base: _opened([os.fspath(each) for each in corpora], base), mode)


add_pictures = add_images
"""Its old name."""


def fill(
    path: str | os.PathLike[str],
    corpora: Sequence[Corpus],
    *,
    encoder: ImageEncoder,
    options: BuildOptions | None = None,
) -> ChangeReport:
    """Add the images of opened corpora; those without any are skipped."""
    mode = SyncMode(encoder=_loader(encoder), options=options or BuildOptions(), delete_missing=False)
    return _sync(path, lambda *_: (corpus for corpus in corpora if corpus.peek() is not None), mode)


def _loader(given: ImageEncoder | Callable[[], ImageEncoder]) -> Callable[[], ImageEncoder]:
    return given if callable(given) else lambda: given


def _sync(
    path: str | os.PathLike[str], opened: Callable[[Path, Manifest], Iterable[Corpus]], mode: SyncMode
) -> ChangeReport:
    """Sync an index with some corpora; refuses another encoder than that of the index."""
    folder = Path(path).expanduser().absolute()

    def load() -> ImageEncoder:
        encoder = mode.encoder()
        if problem := encoder_mismatch(base.encoder, encoder.info.identity()):
            raise EncoderMismatchError(
                f"{folder} {problem}: use the first, or build another index with  llm2clip-index build --from"
            )
        return encoder

    with open_for_write(folder) as found:
        base = check_files(folder, found)
        return sync(folder, base, opened(folder, base), replace(mode, encoder=load)).report(folder)


def _missing(folder: Path, manifest: Manifest, number: int) -> int | None:
    """The number of images of a source whose local folder is gone; None if it is there."""
    root = manifest.sources[number].get("root", "")
    if (
        manifest.sources[number]["kind"] in ("sample", "stdin")
        or not os.path.isabs(root)
        or os.path.exists(root)
    ):
        return None
    with closing(ItemsReader.of(folder, manifest)) as items:
        return int(items.visible("count(*)", "AND source = ?", number)[0][0])


def _reopened(folder: Path, manifest: Manifest, number: int) -> Corpus:
    source = manifest.sources[number]
    require_named(source, index=folder)
    if source["kind"] != "stdin":
        return reopen_corpus(source)

    def known() -> Iterator[str]:
        items = ItemsReader.of(folder, manifest)
        with closing(items):
            last = ""
            statement = f"AND source = ? AND key > ? AND removed = {NEVER} ORDER BY key LIMIT {_AT_ONCE}"
            while rows := items.visible("key", statement, number, last):
                yield from (key for (key,) in rows)
                last = rows[-1][0]

    return PathListCorpus(known, source=source, missing=False)


def _opened(specs: Sequence[str], manifest: Manifest) -> Iterator[Corpus]:
    """Open what the user named; images are grouped by the source that they belong to."""
    named: dict[int, list[str]] = {}
    for spec in specs:
        place = os.path.abspath(os.path.expanduser(spec))
        if "://" not in spec and os.path.isfile(place) and ending(place) in image_endings():
            named.setdefault(_owner(place, manifest), []).append(place)
            continue
        corpus = open_corpus(spec)
        remember([corpus.identity()])
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
        if source not in manifest.sources:
            remember([source])
        yield PathListCorpus(lambda paths=paths: paths, source=source)  # type: ignore[misc]


def _owner(place: str, manifest: Manifest) -> int:
    """The folder among the sources that a path lies in, or is; -1 if none."""
    for number, source in enumerate(manifest.sources):
        if source["kind"] == "folder":
            below = os.path.relpath(place, source["root"]).split(os.sep)
            if below == ["."] or not any(part.startswith(".") for part in below):
                return number
    return -1
