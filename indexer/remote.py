"""Corpora behind URLs: stores that fsspec reads, such as s3://, gs://, https:// or memory://.

A picture is fetched when it is read. A container (tar, zip, table, list, video) is fetched whole, once, into the
data home, and fetched again only if its store says that it changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, NamedTuple, final

from llm2clip.indexer.containers import Files, expand
from llm2clip.indexer.errors import CorpusError
from llm2clip.indexer.extras import need
from llm2clip.indexer.folders import stamp_of
from llm2clip.indexer.location import data_home
from llm2clip.indexer.records import (
    MAX_PICTURE_BYTES,
    MAX_SIDECAR_BYTES,
    VIDEOS,
    Corpus,
    Record,
    Sidecar,
    ending,
    other_picture_endings,
    parse_sidecar,
    picture_endings,
)

_NOTE = "about.json"
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
_MARKS = ("ETag", "etag", "e_tag", "md5Hash", "checksum", "generation", "size", *_TIMES)


@contextmanager
def _asking(url: str) -> Iterator[None]:
    """Name the URL in whatever a store raises; those of stores are of many kinds."""
    try:
        yield
    except CorpusError:
        raise
    except ImportError as error:
        raise CorpusError(f"{url} cannot be read, its store needs another package: {error}") from error
    except FileNotFoundError as error:
        raise CorpusError(f"no such file or folder: {url}") from error
    except Exception as error:
        raise CorpusError(
            f"{url} cannot be read: {' '.join(str(error).split())[:200] or type(error).__name__}"
        ) from error


def _store(url: str) -> tuple[Any, str]:
    """The store of a URL, and the path in it."""
    need("fsspec", extra="remote", what=f"reading {url.partition('://')[0]}://")
    from fsspec.core import url_to_fs

    with _asking(url):
        store, path = url_to_fs(url)
        return store, str(path)


def read_remote(url: str, *, offset: int | None = None, size: int | None = None) -> bytes:
    """The content behind a URL, or ``size`` bytes of it from ``offset``.

    Raises:
        CorpusError: it cannot be read, ends before, or has more than ``MAX_PICTURE_BYTES``.
    """
    store, path = _store(url)
    with _asking(url):
        if offset is not None and size is not None:
            content = bytes(store.cat_file(path, start=offset, end=offset + size))
            if len(content) < size:
                raise CorpusError(f"{url} ends {size - len(content):,} bytes early")
            return content
        known = store.info(path).get("size") or 0
        if known > MAX_PICTURE_BYTES:
            raise CorpusError(f"file of {known:,} bytes, more than the {MAX_PICTURE_BYTES:,} that are read")
        return bytes(store.cat_file(path))


def local_copy(url: str, *, fetch: bool = False) -> Path | None:
    """The file on this machine with the content of a URL.

    Args:
        url: of a container.
        fetch: ask the store whether it changed, and fetch it if it did or was never fetched; otherwise nothing is
            asked, and None returned if it is not here.

    Raises:
        CorpusError: it cannot be fetched.
    """
    store, path = _store(url)
    if "file" in (store.protocol if isinstance(store.protocol, tuple) else (store.protocol,)):
        return Path(path)
    file = _place(url, path)
    if fetch and not _current(store, path, url):
        _fetch(store, path, url)
    return file if file.is_file() else None


def _place(url: str, path: str) -> Path:
    folder = data_home() / "fetched" / hashlib.sha256(url.encode()).hexdigest()[:16]
    return folder / (path.rstrip("/").rpartition("/")[2] or "file")


def _about(url: str, info: Mapping[str, Any]) -> dict[str, str]:
    return {"url": url, **{mark: str(info[mark]) for mark in _MARKS if mark in info}}


def _current(store: Any, path: str, url: str) -> bool:  # noqa: ANN401
    """Whether what was fetched is what the store still has."""
    file = _place(url, path)
    with _asking(url):
        info = store.info(path)
    try:
        return file.is_file() and json.loads((file.parent / _NOTE).read_text("utf-8")) == _about(url, info)
    except (OSError, ValueError):
        return False


def _fetch(store: Any, path: str, url: str) -> None:  # noqa: ANN401
    file = _place(url, path)
    folder, note = file.parent, file.parent / _NOTE
    with _asking(url):
        info = store.info(path)
        folder.mkdir(parents=True, exist_ok=True)
        _require_room(folder, url, info.get("size") or 0)
        draft = folder / f"{os.getpid()}.tmp"
        try:
            store.get_file(path, str(draft))
            changed = _mtime_ns(info)
            os.utime(draft, ns=(changed, changed))
            note.unlink(missing_ok=True)
            os.replace(draft, file)
        finally:
            draft.unlink(missing_ok=True)
        note.write_text(json.dumps(_about(url, info), ensure_ascii=False), "utf-8")


def _require_room(folder: Path, url: str, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise CorpusError(
            f"{url} has {size / 2**20:,.0f} MB, {folder} has room for {free / 2**20:,.0f}: make room, or set "
            "LLM2CLIP_HOME"
        )


def _mtime_ns(info: Mapping[str, Any]) -> int:
    """When a file changed. Of a store that does not say, a number within the first second of 1970 that changes too."""
    for name in _TIMES:
        value = info.get(name)
        with suppress(ValueError):
            value = datetime.fromisoformat(value) if isinstance(value, str) else value
        if isinstance(value, datetime):
            return int(value.timestamp() * 1e6) * 1000
        if isinstance(value, int | float):
            return int(value * 1e6) * 1000
    marks = [str(info.get(mark)) for mark in _MARKS]
    return stamp_of(marks) % 10**9


class Fetched:
    """Fetches containers, each once for as long as this lives."""

    def __init__(self) -> None:
        self._here: dict[str, Path] = {}
        self.fetched: dict[str, int] = {}
        """URL -> bytes, of those that were not here yet."""

    def __call__(self, url: str) -> Path:
        """The local file of a URL.

        Raises:
            CorpusError: it cannot be fetched.
        """
        if url not in self._here:
            before = local_copy(url)
            old = before.stat().st_ino if before is not None else None
            file = local_copy(url, fetch=True)
            if file is None:
                raise CorpusError(f"{url} was fetched and is gone again")
            if file.stat().st_ino != old:
                self.fetched[url] = file.stat().st_size
            self._here[url] = file
        return self._here[url]


def remote_files(pattern: str, *, endings: frozenset[str] = frozenset(), deep: bool = False) -> Files:
    """The containers that a URL names: one, a brace range, those that match ``*``, or with ``endings`` a folder's.

    Raises:
        CorpusError: there is none.
    """
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
    local = Fetched()
    return Files(root=root, pattern=pattern, names=names, local=local, fetched=local.fetched)


def _matching(url: str) -> list[str]:
    if "*" not in url:
        return [url]
    store, path = _store(url)
    with _asking(url):
        scheme = url.partition("://")[0]
        return [f"{scheme}://{str(found).partition('://')[2] or found}" for found in sorted(store.glob(path))]


def is_remote_folder(url: str) -> bool:
    """Whether a URL is a folder.

    Raises:
        CorpusError: it does not exist, or cannot be asked.
    """
    store, path = _store(url)
    with _asking(url):
        return store.info(path).get("type") == "directory"


class Entry(NamedTuple):
    """A file of a remote folder."""

    below: str
    """Its path below that folder."""
    name: str
    """The last part of it."""
    size: int
    """In bytes; 0 if its store does not say."""
    mtime_ns: int
    """See ``Record.mtime_ns``."""
    beside: Mapping[str, tuple[int, int]]
    """Name -> size and time, of the captions and metadata in its folder."""


def walk(url: str, *, deep: bool = True) -> Iterator[Entry]:
    """All visible files below a URL, folder by folder, in order of their names.

    Raises:
        CorpusError: the store cannot be read.
    """
    store, path = _store(url)
    yield from _walk(store, path, "", url, deep)


def _walk(store: Any, path: str, below: str, url: str, deep: bool) -> Iterator[Entry]:  # noqa: ANN401
    with _asking(url):
        found = {
            str(info["name"]).rstrip("/").rpartition("/")[2]: info for info in store.ls(path, detail=True)
        }
    visible = {name: info for name, info in sorted(found.items()) if name and not name.startswith(".")}
    files = {name: info for name, info in visible.items() if info.get("type") != "directory"}
    beside = {
        name: (int(info.get("size") or 0), _mtime_ns(info))
        for name, info in files.items()
        if ending(name) in (".txt", ".json")
    }
    for name, info in files.items():
        yield Entry(f"{below}{name}", name, int(info.get("size") or 0), _mtime_ns(info), beside)
    for name, info in visible.items() if deep else ():
        if info.get("type") == "directory" and not info.get("islink"):
            yield from _walk(store, str(info["name"]), f"{below}{name}/", url, deep)


@final
class RemoteFolderCorpus(Corpus):
    """Pictures below a URL, with captions beside them, as in a folder; each is fetched when it is read.

    Args:
        spec: the URL.
    """

    kind: Final = "remote"  # type: ignore[misc]

    def __init__(self, spec: str) -> None:
        super().__init__(spec, Path(spec))
        self._url = spec.rstrip("/")

    def identity(self) -> dict[str, str]:
        """What the manifest stores."""
        return {"kind": self.kind, "spec": self.spec, "root": self._url}

    def records(self, *, captions: bool = True) -> Iterator[Record]:
        """All pictures, folder by folder, in order of their names."""
        self.passed_over = Counter()
        for entry in walk(self._url):
            kind = ending(entry.name)
            if kind in picture_endings():
                url = f"{self._url}/{entry.below}"
                stamp, sidecar = _sidecar(url, entry, captions)
                yield Record(
                    key=entry.below,
                    uri=url,
                    file=Path(url),
                    size=entry.size,
                    mtime_ns=entry.mtime_ns,
                    sidecars=stamp,
                    fetch=partial(read_remote, url),
                    caption=sidecar.caption,
                    metadata=sidecar.metadata,
                    note=sidecar.note,
                )
            elif kind in VIDEOS or kind in other_picture_endings():
                self.passed_over[kind] += 1

    def emptiness(self) -> str:
        """What the folder holds instead of pictures."""
        endings = Counter(ending(entry.name) or "no ending" for entry in walk(self._url))
        some = ", ".join(f"{count} with {what}" for what, count in endings.most_common(4)) or "nothing"
        return (
            f"no pictures in {self._url}: got {some}; expected endings {' '.join(sorted(picture_endings()))}"
        )


def _sidecar(url: str, entry: Entry, captions: bool) -> tuple[int | None, Sidecar]:
    stem = entry.name.rpartition(".")[0]
    names = [f"{stem}{kind}" for kind in (".json", ".txt")]
    present = [(name, *entry.beside[name]) for name in names if name in entry.beside]
    if not present:
        return None, Sidecar()
    stamp = stamp_of(present)
    if not captions:
        return stamp, Sidecar()
    if max(size for _, size, _ in present) > MAX_SIDECAR_BYTES:
        return stamp, Sidecar(note=f"caption or metadata left out: more than {MAX_SIDECAR_BYTES:,} bytes")
    folder = url.rpartition("/")[0]
    try:
        contents = [read_remote(f"{folder}/{name}") if name in entry.beside else None for name in names]
    except CorpusError as error:
        return None, Sidecar(note=f"caption or metadata left out: {error}")
    return stamp, parse_sidecar(contents[0], contents[1])
