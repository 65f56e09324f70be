"""``Record``, an image of a corpus, and ``Corpus``, which lists them."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from llm2clip.common.files import counted
from llm2clip.indexer.core.errors import CorpusError
from llm2clip.indexer.records.files import (
    CAMERAS,
    HEIF,
    MAX_IMAGE_BYTES,
    VIDEOS,
    image_endings,
    printable,
    read_span,
    read_whole,
)
from llm2clip.indexer.records.sidecars import Sidecar
from llm2clip.indexer.records.values import storable

_NAMED = 3  # files that a note names
_ABOUT = re.compile(r"(?i)(readme|licen[cs]e|notice|requirements|changelog|metadata|package|config)\b")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """An image of a corpus, not yet read."""

    key: str
    """Stable name: the path below the root of the corpus with forward slashes; in a container its path, ``#`` and the
    member (``a.tar#x.jpg``), row (``a.parquet#17``) or time (``a.mp4#t=12.5``)."""
    uri: str
    """A file path or URL; in a container that of the container, ``#`` and the rest of the key."""
    file: Path
    """The local file that holds its bytes; for a remote image its URL."""
    path: str | None = None
    """Path of that file below the root, if that is not ``key``."""
    offset: int | None = None
    """Byte offset in the file; None: the whole file."""
    size: int | None = None
    """Size in bytes; 0 where only reading it would tell (a row of a table, a frame of a video), None if it cannot be
    read."""
    mtime_ns: int | None = None
    """Modification time of the file in nanoseconds since 1970; 0 where unknown, None if it cannot be read."""
    inner: Mapping[str, Any] | None = None
    """What else the locator needs to read it again."""
    fetch: Callable[[], bytes] | None = None
    """Reads its bytes where they are not a span of ``file``. Can be pickled: a build spools what it lists."""
    sidecars: int | None = None
    """Stamp of its caption and metadata (``stamp_of``); None without any."""
    caption: str | None = None
    metadata: Mapping[str, Any] | None = None
    problem: str | None = None
    """Why it cannot be read, if that is known already."""
    note: str | None = None
    """What is wrong with its caption or metadata, or with its file time."""
    describe: Callable[[], Sidecar] | None = None
    """Reads its caption and metadata if listing did not; called in the order of listing; may raise anything."""

    def __post_init__(self) -> None:
        """Leave out a size, a file time and metadata that no index can hold, and note it."""
        if self.size is not None and not 0 <= self.size < 2**63:
            object.__setattr__(
                self, "problem", self.problem or "damaged: no file has the size that is told of it"
            )
            object.__setattr__(self, "size", None)
        if self.mtime_ns is not None and not -(2**63) < self.mtime_ns < 2**63:
            object.__setattr__(self, "mtime_ns", 0)
            self._add_note("its file time lies before 1677 or after 2262, so it counts as unknown")
        if self.metadata:
            metadata, note = storable(self.metadata)
            object.__setattr__(self, "metadata", metadata)
            self._add_note(note)

    def _add_note(self, note: str | None) -> None:
        if note is not None and note not in (self.note or ""):
            object.__setattr__(self, "note", note if self.note is None else f"{self.note}; {note}")

    def described(self) -> Record:
        """The record with its caption and metadata."""
        if self.describe is None:
            return self
        try:
            found = self.describe()
        except Exception as error:  # whatever the reader of a container raises
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            found = Sidecar(note=f"caption or metadata left out: {reason}", failed=True)
        return replace(
            self,
            sidecars=None if found.failed else self.sidecars,
            caption=found.caption,
            metadata={**(found.metadata or {}), **(self.metadata or {})} or None,
            note="; ".join(filter(None, (self.note, found.note))) or None,
            describe=None,
        )

    @property
    def locator(self) -> str | None:
        """What ``read_located`` needs to read it again, as JSON; None: it is the whole file ``key``."""
        if self.inner is None and self.offset is None:
            return None if self.path is None else _compact({"path": self.path})
        span = {} if self.offset is None else {"offset": self.offset, "size": self.size}
        return _compact({"path": self.path or self.key, **span, **(self.inner or {})})

    def read(self) -> bytes:
        """Its encoded bytes.

        Raises:
            OSError: it cannot be read.
            ValueError: its part of a container is damaged; as ``CorpusError``: it is larger than ``MAX_IMAGE_BYTES``,
                or known to be unreadable.
        """
        if self.problem is not None:
            raise CorpusError(self.problem)
        if (self.size or 0) > MAX_IMAGE_BYTES:
            raise CorpusError(f"file of {self.size:,} bytes, more than the limit of {MAX_IMAGE_BYTES:,}")
        if self.fetch is not None:
            return self.fetch()
        if self.offset is None:
            return read_whole(self.file)
        return read_span(self.file, offset=self.offset, size=self.size or 0)


class Corpus(ABC):
    """Images to index. Implementations are final; ``open_corpus`` chooses one."""

    kind: str
    """The implementation, as the manifest names it."""

    def __init__(self, spec: str, root: Path) -> None:
        self.spec, self.root = spec, root
        self.notes: list[str] = []
        """Notes for the user about how it is read."""
        self.skipped: Counter[str] = Counter()
        """Ending -> number of unsupported images, and of videos, that the last listing skipped."""
        self.unclaimed: Counter[str] = Counter()
        """Caption and metadata files that belong to no image: some of their names, and how many are not named."""
        self.read_notes: list[str] = []
        """Notes for the user that arose while it was read."""
        self._begun: Iterator[Record] | None = None

    def records(self, *, captions: bool = True) -> Iterator[Record]:
        """All images, always in the same order.

        Args:
            captions: also read captions and metadata; without, ``described`` reads them later.
        """
        listed = self._list()
        return (record.described() for record in listed) if captions else listed

    @abstractmethod
    def _list(self) -> Iterator[Record]:
        """All images, always in the same order, with ``describe`` where captions have to be read."""

    def _restart(self) -> None:
        """Forget what an earlier listing counted."""
        self.skipped, self.unclaimed, self.read_notes = Counter(), Counter(), []

    def _unclaimed(self, names: Iterable[str]) -> None:
        """Count caption files that belong to no image, other than those that come with any folder."""
        for name in names:
            if not _ABOUT.match(name.rpartition("/")[2]):
                self.unclaimed[name if len(self.unclaimed) < _NAMED else ""] += 1

    def peek(self) -> Record | None:
        """The first image, None if there is none. The next call of ``listing`` continues from there."""
        listed = self.listing()
        first = next(listed, None)
        self._begun = iter(()) if first is None else chain([first], listed)
        return first

    def listing(self) -> Iterator[Record]:
        """All images without captions, in one pass that ``peek`` may have begun."""
        begun, self._begun = self._begun, None
        return self.records(captions=False) if begun is None else begun

    def require_images(self) -> None:
        """Refuse a corpus without images, such as an unmounted disk.

        Raises:
            CorpusError: it has none.
        """
        if self.peek() is None:
            raise CorpusError(self.explain_empty())

    def skipped_note(self) -> str | None:
        """What was skipped, and ``read_notes``, for the user; None if there is nothing."""
        videos = Counter({kind: number for kind, number in self.skipped.items() if kind in VIDEOS})
        parts = []
        if images := self.skipped - videos:
            left, remedies = set(images), list[str]()
            for extra, kinds, what in (("heic", HEIF, "HEIC"), ("raw", CAMERAS, "raw files of cameras")):
                if left & kinds:
                    left -= kinds
                    remedies.append(f"pip install 'llm2clip-retrieval[{extra}]' reads {what}")
            others = "convert the others to JPEG" if remedies else "convert them to JPEG to index them"
            remedy = "; ".join([*remedies, *([others] if left else [])])
            parts.append(
                f"{counted(images.total(), 'image')} of unsupported types skipped{_some(images)}: {remedy}"
            )
        if videos:
            parts.append(
                f"{counted(videos.total(), 'video')} skipped{_some(videos)}: "
                "--frame-interval 10 takes a frame every 10 s"
            )
        if count := self.unclaimed.total():
            some = ", ".join(
                [printable(name) for name in self.unclaimed if name] + ["..."] * ("" in self.unclaimed)
            )
            files = "1 .txt or .json file belongs" if count == 1 else f"{count:,} .txt and .json files belong"
            parts.append(f"{files} to no image ({some})")
        return "; ".join([*parts, *self.read_notes]) or None

    @abstractmethod
    def explain_empty(self) -> str:
        """Why there are no images: what was found, and what was expected."""

    def identity(self) -> dict[str, str]:
        """What the manifest stores: two corpora are the same if these are equal but for ``spec``."""
        return {"kind": self.kind, "spec": self.spec, "root": str(self.root)}


def _some(kinds: Counter[str]) -> str:
    some = ", ".join(f"{number:,} {kind}" for kind, number in kinds.most_common(4))
    return f" ({some}{', ...' if len(kinds) > 4 else ''})"


def describe_empty(where: str, found: Counter[str], *, empty: str = "got no files at all") -> str:
    """The message for a corpus without images; ``found`` counts what it has instead."""
    some = ", ".join(f"{count:,} with {what or 'no ending'}" for what, count in found.most_common(4))
    expected = f"expected endings {' '.join(sorted(image_endings()))}"
    return f"no images in {where}: {f'got {some}' if some else empty}; {expected}"


def _compact(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def same_corpus(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two identities name the same images, whatever is excluded of them."""
    return {**one, "spec": "", "exclude": ""} == {**other, "spec": "", "exclude": ""}
