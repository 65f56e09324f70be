"""Lists of images: CSV, TSV, JSON lines, or one path per line, from a file or standard input."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
import unicodedata
import weakref
from abc import abstractmethod
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, Final, final

from llm2clip.indexer.core.errors import CorpusError
from llm2clip.indexer.records.files import ending, image_endings, other_image_endings, printable
from llm2clip.indexer.records.record import Corpus, Record
from llm2clip.indexer.records.sidecars import sidecar_beside, stamp_of
from llm2clip.indexer.records.tabular import Row, encoding_of, read_rows

STDIN = "-"
"""Name of a list of paths on standard input."""


class ListedCorpus(Corpus):
    """Images of a list, in its order.

    The key is the path below the root, elsewhere the absolute path or URL. Consecutive rows of one image are one
    record; all their captions go to its metadata, as ``captions``.
    """

    def __init__(self, spec: str, root: str) -> None:
        super().__init__(spec, Path(root))
        self._base = root.rstrip("/") if "://" in root else root

    @abstractmethod
    def _rows(self) -> Iterator[Row]:
        """The rows of the list, from its beginning."""

    def _list(self) -> Iterator[Record]:
        """All images, in the order of the list."""
        self._restart()
        seen: set[int] = set()
        for row in _joined(self._rows()):
            if row.problem is not None:
                key = f"{self.spec}:{row.line}"
                yield Record(key=key, uri=key, file=self.root, problem=f"line {row.line}: {row.problem}")
                continue
            key = self._key(row.path)
            if hash(key) in seen:
                key = f"{printable(key)}@line {row.line}"
                yield Record(key=key, uri=key, file=self.root, problem="listed before")
                continue
            seen.add(hash(key))  # hashes, not names: a list may have millions of rows
            kind = ending(key.rpartition("/")[2])
            if kind in other_image_endings():
                self.skipped[kind] += 1
            else:
                yield self._record(key, row)

    def _key(self, path: str) -> str:
        if "://" in path:
            return path.removeprefix(f"{self._base}/")
        root = self._base
        if "://" in root:
            return path.removeprefix("./")
        whole = os.path.normpath(os.path.join(root, os.path.expanduser(path)))
        inside = whole.startswith(os.path.join(root, ""))
        return (os.path.relpath(whole, root) if inside else whole).replace(os.sep, "/")

    def _record(self, key: str, row: Row) -> Record:
        if "://" in key or "://" in self._base:
            return self._remote(key, row)
        file = self.root / key
        if key != printable(key):
            return Record(
                key=printable(key), uri=printable(key), file=file, problem="file name is not UTF-8: rename it"
            )
        try:
            key, file = self._as_written(key, file)
            found = file.stat()
        except (OSError, ValueError) as error:  # a NUL in a name is a ValueError
            reason = getattr(error, "strerror", None) or str(error)
            return Record(key=key, uri=str(file), file=file, problem=reason)
        if problem := _unfit(file, found):
            return Record(key=key, uri=str(file), file=file, problem=problem)
        stamp, describe = _stamp(row), None
        if stamp is None:
            stamp, describe = sidecar_beside(file, root=self.root)
        return Record(
            key=key,
            uri=str(file),
            file=file,
            size=found.st_size,
            mtime_ns=found.st_mtime_ns,
            sidecars=stamp,
            caption=row.caption,
            metadata=row.metadata or None,
            describe=describe,
        )

    def _as_written(self, key: str, file: Path) -> tuple[str, Path]:
        """The key and file with the name as the file system has it: composed or decomposed."""
        if not key.isascii() and not os.path.lexists(file):
            for form in ("NFC", "NFD"):
                name = unicodedata.normalize(form, key)
                if os.path.lexists(self.root / name):
                    return name, self.root / name
        return key, file

    def _remote(self, key: str, row: Row) -> Record:
        from llm2clip.indexer.corpora.remote_store import read_remote

        url = key if "://" in key else f"{self._base}/{key}"
        if "://" in self._base and not _may_name(self._base, url):
            problem = (
                "a list behind a URL may name images of its own store and of http:// and https://, no others"
            )
            return Record(key=key, uri=url, file=Path(url), problem=problem)
        return Record(
            key=key,
            uri=url,
            file=Path(url),
            size=0,
            mtime_ns=0,
            fetch=partial(read_remote, url),
            sidecars=_stamp(row),
            caption=row.caption,
            metadata=row.metadata,
        )

    def explain_empty(self) -> str:
        """What the list holds instead."""
        lines = sum(1 for _ in self._rows())
        where = "on standard input" if self.spec == STDIN else f"in the list {self.spec}"
        return f"no images {where}: got {lines:,} lines, expected an image in each"


def _may_name(root: str, url: str) -> bool:
    """Whether an untrusted list below a root may name a URL: no local files."""
    scheme = url.partition("://")[0]  # :: chains one store into another
    return scheme in (root.partition("://")[0], "http", "https") and "::" not in url


def _stamp(row: Row) -> int | None:
    return None if row.caption is None and not row.metadata else stamp_of((row.caption, row.metadata))


def _unfit(file: Path, found: os.stat_result) -> str | None:
    if stat.S_ISDIR(found.st_mode):
        return "a folder, not an image"
    if not stat.S_ISREG(found.st_mode):
        return "not a regular file"
    kind = ending(file.name)
    return f"its ending {kind} is not that of an image" if kind and kind not in image_endings() else None


def _joined(rows: Iterator[Row]) -> Iterator[Row]:
    """Merge consecutive rows of one image."""
    for _, group in groupby(rows, key=lambda row: (row.path, row.line if row.problem else None)):
        row, *others = group
        captions = [each.caption for each in (row, *others) if each.caption]
        if len(captions) > 1:
            row = row._replace(caption=captions[0], metadata={**(row.metadata or {}), "captions": captions})
        yield row


@final
class ListCorpus(ListedCorpus):
    """Images listed in a file: CSV or TSV with a header, JSON lines, or one path per line.

    Paths are relative to ``root``, a folder or URL; None: the folder of the list.
    """

    kind: Final = "list"  # type: ignore[misc]

    def __init__(self, spec: str, file: Path, *, root: str | None = None) -> None:
        self._file = Path(os.path.abspath(file))
        if not self._file.is_file():
            raise CorpusError(f"{spec} is not a regular file: expected a list of images")
        super().__init__(spec, root or str(self._file.parent))
        self._where = f"{self._base}/{self._file.name}" if root else str(self._file)
        self._encoding = encoding_of(self._file)
        if self._encoding == "gb18030":
            self.notes.append(f"{spec} is not UTF-8: it was read as GB 18030 (Chinese)")
        next(self._rows(), None)  # refuse a header without paths at once

    def _rows(self) -> Iterator[Row]:
        return read_rows(self._file, encoding=self._encoding)

    def identity(self) -> dict[str, str]:
        """What the manifest stores."""
        return {"kind": self.kind, "spec": self.spec, "root": self._base, "list": self._where}


@final
class StdinCorpus(ListedCorpus):
    """Images whose paths come from another command, one per line or NUL-terminated; read once and spooled."""

    kind: Final = "stdin"  # type: ignore[misc]

    def __init__(self, stream: BinaryIO | None = None) -> None:
        super().__init__(STDIN, os.getcwd())
        if stream is None and sys.stdin.isatty():
            raise CorpusError(
                "- reads a list of paths from a pipe, got a terminal: "
                "find PHOTOS -name '*.jpg' | llm2clip-index build - --index PATH"
            )
        self._kept = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self._kept.close)
        shutil.copyfileobj(stream or sys.stdin.buffer, self._kept)
        self._kept.seek(0)
        self._mark = b"\0" if b"\0" in self._kept.read(2**16) else b"\n"

    def _rows(self) -> Iterator[Row]:
        place, rest, number = 0, b"", 0
        while True:
            self._kept.seek(place)
            block = self._kept.read(2**20)
            place += len(block)
            *whole, rest = (rest + block).split(self._mark)
            for each in whole if block else [rest]:
                number += 1
                if path := os.fsdecode(each).rstrip("\r\n"):
                    yield Row(number, path)
            if not block:
                return
