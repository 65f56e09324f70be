"""Folders and containers behind URLs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, NamedTuple, final

from llm2clip.indexer.containers.container import Files, expand
from llm2clip.indexer.core.errors import CorpusError
from llm2clip.indexer.corpora.remote_store import (
    CachedDownloader,
    mtime_ns_of,
    read_remote,
    store_of,
    wrap_store_errors,
)
from llm2clip.indexer.records.files import VIDEOS, ending, image_endings, other_image_endings
from llm2clip.indexer.records.record import Corpus, Record, describe_empty
from llm2clip.indexer.records.sidecars import Beside, Sidecar, limited, read_sidecar, stamp_of


def remote_files(pattern: str, *, endings: frozenset[str] = frozenset(), deep: bool = False) -> Files:
    """The containers that a URL names: one, a brace range, a ``*`` pattern, or with ``endings`` those of a folder."""
    if endings:
        root = pattern.rstrip("/")
        names = [f"{root}/{each.below}" for each in walk(root, deep=deep) if ending(each.name) in endings]
        return _files(root, pattern, names)
    names = [name for each in expand(pattern) for name in _matching(each)]
    if not names:
        raise CorpusError(f"no such file: {pattern}")
    columns = zip(*(name.split("/")[:-1] for name in names), strict=False)
    root = "/".join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, columns))
    return _files(root, pattern, names)


def _files(root: str, pattern: str, names: Sequence[str]) -> Files:
    local = CachedDownloader()
    return Files(root=root, pattern=pattern, names=names, local=local, fetched=local.fetched)


def _matching(url: str) -> list[str]:
    if "*" not in url:
        return [url]
    store, path = store_of(url)
    with wrap_store_errors(url):
        scheme = url.partition("://")[0]
        return [f"{scheme}://{str(found).partition('://')[2] or found}" for found in sorted(store.glob(path))]


def is_remote_folder(url: str) -> bool:
    """Whether a URL is a folder."""
    store, path = store_of(url)
    with wrap_store_errors(url):
        return bool(store.info(path).get("type") == "directory")


class Entry(NamedTuple):
    """A file of a remote folder."""

    below: str
    """Its path below that folder."""
    name: str
    """Its file name."""
    size: int
    """In bytes; 0 if unknown."""
    mtime_ns: int
    """See ``Record.mtime_ns``."""
    beside: Mapping[str, tuple[int, int]]
    """Name -> size and time of caption and metadata files in its folder."""
    files: Beside
    """The same files, by image."""


def walk(url: str, *, deep: bool = True) -> Iterator[Entry]:
    """All visible files below a URL, folder by folder, in order of their names."""
    store, path = store_of(url)
    yield from _walk(store, path, "", url, deep)


def _walk(store: Any, path: str, below: str, url: str, deep: bool) -> Iterator[Entry]:  # noqa: ANN401
    with wrap_store_errors(url):
        found = {
            str(info["name"]).rstrip("/").rpartition("/")[2]: info for info in store.ls(path, detail=True)
        }
    visible = {name: info for name, info in sorted(found.items()) if name and not name.startswith(".")}
    files = {name: info for name, info in visible.items() if info.get("type") != "directory"}
    beside = {
        name: (int(info.get("size") or 0), mtime_ns_of(info))
        for name, info in files.items()
        if ending(name) in (".txt", ".json")
    }
    by_image = Beside(beside)
    for name, info in files.items():
        yield Entry(f"{below}{name}", name, int(info.get("size") or 0), mtime_ns_of(info), beside, by_image)
    for name, info in visible.items() if deep else ():
        if info.get("type") == "directory" and not info.get("islink"):
            yield from _walk(store, str(info["name"]), f"{below}{name}/", url, deep)


@final
class RemoteFolderCorpus(Corpus):
    """Images below a URL, with captions beside them; each is downloaded when it is read."""

    kind: Final = "remote"  # type: ignore[misc]

    def __init__(self, spec: str) -> None:
        super().__init__(spec, Path(spec))
        self._url = spec.rstrip("/")

    def identity(self) -> dict[str, str]:
        """What the manifest stores."""
        return {"kind": self.kind, "spec": self.spec, "root": self._url}

    def _list(self) -> Iterator[Record]:
        """All images, folder by folder, in order of their names."""
        self._restart()
        last: Beside | None = None
        for entry in walk(self._url):
            if last is not None and last is not entry.files:
                self._unclaimed(last.unused)
            last, kind = entry.files, ending(entry.name)
            if kind in image_endings():
                url = f"{self._url}/{entry.below}"
                stamp, describe = _sidecar(url, entry)
                yield Record(
                    key=entry.below,
                    uri=url,
                    file=Path(url),
                    size=entry.size,
                    mtime_ns=entry.mtime_ns,
                    sidecars=stamp,
                    fetch=partial(read_remote, url),
                    describe=describe,
                )
            elif kind in VIDEOS or kind in other_image_endings():
                self.skipped[kind] += 1
        self._unclaimed(last.unused if last is not None else ())

    def explain_empty(self) -> str:
        """What the folder holds instead."""
        return describe_empty(self._url, Counter(ending(entry.name) for entry in walk(self._url)))


def _sidecar(url: str, entry: Entry) -> tuple[int | None, Callable[[], Sidecar] | None]:
    folder = url.rpartition("/")[0]
    present = [(name, *entry.beside[name]) for name in entry.files.of(entry.name).values()]
    if not present:
        return None, None
    parts = {
        ending(name): partial(limited, partial(read_remote, f"{folder}/{name}"), size)
        for name, size, _ in present
    }
    return stamp_of(present), partial(read_sidecar, parts)
