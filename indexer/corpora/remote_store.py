"""Reads URLs through fsspec: s3://, gs://, https://, memory:// and others.

Images are downloaded when they are read. Containers (tar, zip, table, list, video) are downloaded whole into the data
home, and again only if the store says that they changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import Any

from llm2clip.common.files import atomic_path, data_home, write_atomic
from llm2clip.indexer.core.errors import CorpusError, require_extra
from llm2clip.indexer.records.files import MAX_IMAGE_BYTES, require_span
from llm2clip.indexer.records.sidecars import stamp_of

_NOTE = "about.json"
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
_MARKS = ("ETag", "etag", "e_tag", "md5Hash", "checksum", "generation", "size", *_TIMES)


on_fetch: ContextVar[Callable[[str], None] | None] = ContextVar("on_fetch", default=None)
"""Called with one line before a file is fetched."""


@contextmanager
def wrap_store_errors(url: str) -> Iterator[None]:
    """Turn any error of a store into one that names the URL."""
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


def store_of(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it."""
    require_extra("fsspec", extra="remote", what=f"reading {url.partition('://')[0]}://")
    from fsspec.core import url_to_fs

    with wrap_store_errors(url):
        store, path = url_to_fs(url)
        return store, str(path)


def read_remote(url: str, *, offset: int | None = None, size: int | None = None) -> bytes:
    """The content behind a URL, or ``size`` bytes of it from ``offset``."""
    store, path = store_of(url)
    with wrap_store_errors(url):
        if offset is not None and size is not None:
            require_span(offset, size)
            content = bytes(store.cat_file(path, start=offset, end=offset + size))
            if len(content) < size:
                raise CorpusError(f"{url} ends {size - len(content):,} bytes early")
            return content
        known = store.info(path).get("size") or 0
        if known > MAX_IMAGE_BYTES:
            raise CorpusError(f"file of {known:,} bytes, more than the limit of {MAX_IMAGE_BYTES:,}")
        return bytes(store.cat_file(path))


def local_copy(url: str, *, fetch: bool = False) -> Path | None:
    """The local copy of a container; None if there is none.

    With ``fetch`` it is downloaded if it is not here or changed; otherwise the store is not contacted.
    """
    store, path = store_of(url)
    if "file" in (store.protocol if isinstance(store.protocol, tuple) else (store.protocol,)):
        return Path(path)
    folder = data_home() / "fetched" / hashlib.sha256(url.encode()).hexdigest()[:16]
    file = folder / (path.rstrip("/").rpartition("/")[2] or "file")
    if fetch:
        with wrap_store_errors(url):
            _refresh(file, store, path, url)
    return file if file.is_file() else None


def _refresh(file: Path, store: Any, path: str, url: str) -> None:  # noqa: ANN401
    """Download a file unless the local copy is what the store has now."""
    info, note = store.info(path), file.parent / _NOTE
    about = {"url": url, **{mark: str(info[mark]) for mark in _MARKS if mark in info}}
    with suppress(OSError, ValueError):
        if file.is_file() and json.loads(note.read_text("utf-8")) == about:
            return
    file.parent.mkdir(parents=True, exist_ok=True)
    size, free = info.get("size") or 0, shutil.disk_usage(file.parent).free
    if size > free:
        raise CorpusError(
            f"{url} has {size / 2**20:,.0f} MB, {file.parent} has room for {free / 2**20:,.0f}: free disk "
            "space, or set LLM2CLIP_HOME"
        )
    if (tell := on_fetch.get()) is not None:
        tell(f"fetching {url} ({size / 2**20:,.1f} MB)")
    with atomic_path(file) as draft:
        store.get_file(path, str(draft))
        changed = mtime_ns_of(info)
        os.utime(draft, ns=(changed, changed))
        note.unlink(missing_ok=True)
    write_atomic(note, json.dumps(about, ensure_ascii=False))


def mtime_ns_of(info: Mapping[str, Any]) -> int:
    """Modification time; if the store has none, a number in the first second of 1970 that changes with the file."""
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


class CachedDownloader:
    """Downloads containers, each at most once."""

    def __init__(self) -> None:
        self._here: dict[str, Path] = {}
        self.fetched: dict[str, int] = {}
        """URL -> bytes, of those that were downloaded."""

    def __call__(self, url: str) -> Path:
        """The local copy of a URL."""
        if url not in self._here:
            before = local_copy(url)
            old = before.stat().st_ino if before is not None else None
            file = local_copy(url, fetch=True)
            if file is None:
                raise CorpusError(f"{url} was downloaded but has since been deleted")
            if file.stat().st_ino != old:
                self.fetched[url] = file.stat().st_size
            self._here[url] = file
        return self._here[url]
