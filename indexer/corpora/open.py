"""Opens a corpus by its path, pattern or URL."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from llm2clip.common.files import counted
from llm2clip.indexer.containers.container import ContainerCorpus, Files, expand
from llm2clip.indexer.containers.parquet import TABLES, TableCorpus
from llm2clip.indexer.containers.tar import SampleCorpus, TarCorpus
from llm2clip.indexer.containers.zip import ZipCorpus
from llm2clip.indexer.core.errors import CorpusError
from llm2clip.indexer.core.index_paths import SAMPLE, named_place
from llm2clip.indexer.corpora.folder import LISTS_BESIDE, FolderCorpus, note_of_list
from llm2clip.indexer.corpora.list_file import STDIN, ListCorpus, StdinCorpus
from llm2clip.indexer.records.files import VIDEOS, ending, image_endings
from llm2clip.indexer.records.record import Corpus
from llm2clip.indexer.records.tabular import LISTS

_PACKED = frozenset([".gz", ".tgz", ".bz2", ".xz", ".zst"])


class _Kind(NamedTuple):
    """A type of container."""

    endings: frozenset[str]
    opened: Callable[[str, Files], ContainerCorpus]
    deep: bool = False  # whether folders in a folder are searched too


_CONTAINERS: Mapping[str, _Kind] = {
    "tar": _Kind(frozenset([".tar"]), TarCorpus),
    "zip": _Kind(frozenset([".zip"]), ZipCorpus),
    "table": _Kind(TABLES, TableCorpus, deep=True),
}


def open_corpus(
    spec: str | os.PathLike[str], *, every: float | None = None, exclude: Sequence[str] = ()
) -> Corpus:
    """Open what ``spec`` names; docs/corpora.md has the list.

    Args:
        spec: a folder of images (with everything below it); a tar, zip, Parquet or Arrow file, a folder of them or
            a brace range like ``shards/{00..03}.tar``; a list of images (.csv, .tsv, .jsonl, .txt), or ``-`` for
            paths from standard input; a video; a URL of any of these; or ``sample:``.
        every: seconds between frames of videos; None: 10 if there are only videos, else videos are skipped.
        exclude: patterns of files and folders that a folder is read without.

    Raises:
        CorpusError: it is none of these, does not exist, or needs an extra that is not installed.
        OSError: it cannot be read.
    """
    given = os.fspath(spec)
    if exclude and ("://" in given or not Path(given).expanduser().is_dir()):
        raise CorpusError(f"got patterns to exclude from {given}: expected a folder on this machine")
    if given == SAMPLE:
        return SampleCorpus()
    if given == STDIN:
        return StdinCorpus()
    if "://" in given:
        return _remote(given, every)
    path = Path(given).expanduser()
    if path.is_dir():
        return _folder(given, path, every, exclude)
    kind = ending(path.name)
    if path.exists() and kind in image_endings():
        raise CorpusError(f"{given} is a single image: expected its folder, or a list of images")
    if path.is_file() and kind in LISTS:
        return ListCorpus(given, path)
    if kind in VIDEOS:
        return _videos(given, Files.found(given, endings=VIDEOS), every)
    container = next((each for each in _CONTAINERS.values() if kind in each.endings), None)
    if path.exists() and container is None and kind not in _PACKED:
        raise CorpusError(f"{given} is neither a folder of images nor a {_known()} of them")
    if not path.exists() and len(expand(given)) == 1:
        hint = ". Give the folder, or pipe the names in: ls ... | llm2clip-index build - --index PATH"
        raise CorpusError(f"no such file or folder: {given}{hint if '*' in given else ''}")
    if container is None:
        return TarCorpus(given)  # which raises an error that says how to unpack it
    return container.opened(given, Files.found(given, endings=container.endings))


def reopen_corpus(identity: Mapping[str, str]) -> Corpus:
    """Open the corpus whose ``Corpus.identity`` an index stores, from any working folder."""
    kind, spec = identity["kind"], identity["spec"]
    if kind == SampleCorpus.kind:
        return SampleCorpus()
    if kind == StdinCorpus.kind:
        raise CorpusError(
            "this index was built from a list on standard input: pipe the list in again, with -"
        )
    every = float(identity["every"]) if "every" in identity else None
    if "://" in identity["root"]:
        return _remote(named_place(identity), every, spec=spec)
    if kind == ListCorpus.kind:
        return ListCorpus(spec, Path(identity["list"]))
    if kind in _CONTAINERS:
        pattern, container = identity["shards"], _CONTAINERS[kind]
        return container.opened(spec, Files.found(pattern, endings=container.endings, deep=container.deep))
    if kind == "video":
        return _videos(spec, Files.found(identity["shards"], endings=VIDEOS), every)
    if not os.path.isdir(identity["root"]):
        raise CorpusError(f"no such folder: {identity['root']}")
    exclude = identity["exclude"].split("\n") if "exclude" in identity else ()
    return FolderCorpus(spec, Path(identity["root"]), every=every, exclude=exclude)


def _videos(spec: str, files: Files, every: float | None) -> Corpus:
    from llm2clip.indexer.containers.video import EVERY, VideoCorpus

    return VideoCorpus(spec, files, every=EVERY if every is None else every)


def _remote(url: str, every: float | None, *, spec: str | None = None) -> Corpus:
    """Open a URL: by its ending, else as a folder of images or of containers."""
    from llm2clip.indexer.corpora.remote_folder import (
        RemoteFolderCorpus,
        is_remote_folder,
        remote_files,
        walk,
    )
    from llm2clip.indexer.corpora.remote_store import CachedDownloader

    given, kind = spec or url, ending(url.rpartition("/")[2])
    if kind in LISTS:
        return ListCorpus(given, CachedDownloader()(url), root=url.rpartition("/")[0])
    if kind in VIDEOS:
        return _videos(given, remote_files(url), every)
    for container in _CONTAINERS.values():
        if kind in container.endings:
            return container.opened(given, remote_files(url))
    if not is_remote_folder(url):
        raise CorpusError(f"{url} is neither a folder of images nor a {_known()} of them")
    kinds: set[str] = set()
    for entry in walk(url):
        kinds.add(ending(entry.name))
        if kinds & image_endings():
            break
    else:
        for container in _CONTAINERS.values():
            if kinds & container.endings:
                return container.opened(given, remote_files(url, endings=container.endings, deep=True))
    return RemoteFolderCorpus(given if spec is None else url)


def _known() -> str:
    endings = [each for kind in _CONTAINERS.values() for each in sorted(kind.endings)] + sorted(LISTS)
    return ", ".join(endings[:-1]) + f" or {endings[-1]}"


def _folder(given: str, path: Path, every: float | None, exclude: Sequence[str]) -> Corpus:
    """Open a folder: its containers if it holds no image, else its images; videos if there is nothing else."""
    root = Path(os.path.abspath(path))
    folder = FolderCorpus(given, root, every=every, exclude=exclude)
    alone = folder.peek() is None
    found = {  # beside images only those at the top: others may lie among thousands of files
        name: Files.found(given, endings=kind.endings, deep=kind.deep and alone)
        for name, kind in _CONTAINERS.items()
    }
    found = {name: files for name, files in found.items() if files.names}
    if found and alone:
        chosen, *others = found
        corpus = _CONTAINERS[chosen].opened(given, found[chosen])
        corpus.notes += [_unread(len(found[name].names), name, given, f"{chosen} files") for name in others]
        corpus.notes += _lists(path, first=f"unpack the {chosen} files beside it, and ")
        return corpus
    if alone and any(kind in VIDEOS for kind in folder.skipped):
        from llm2clip.indexer.containers.video import EVERY

        folder = FolderCorpus(given, root, every=EVERY, exclude=exclude)
        folder.notes.append(
            f"one frame every {EVERY:g} s of each video is indexed: --frame-interval changes that"
        )
    folder.notes += [_unread(len(files.names), name, given, "images") for name, files in found.items()]
    folder.notes += _lists(path)
    return folder


def _unread(count: int, kind: str, given: str, beside: str) -> str:
    files = counted(count, f"{kind} file")
    return f"{files} in {given} were skipped, as there are {beside} beside them"


def _lists(folder: Path, *, first: str = "") -> Iterator[str]:
    """A note if the folder has a list of captions."""
    names = (folder / name for name in LISTS_BESIDE)
    for name in islice(filter(os.path.isfile, names), 1):
        yield note_of_list(name, first=first)
