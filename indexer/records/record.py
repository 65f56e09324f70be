"""``Record`` and ``Corpus``: images one by one, under stable names, wherever they come from."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from llm2clip.indexer.core.errors import CorpusError
from llm2clip.indexer.records.files import HEIF, MAX_IMAGE_BYTES, VIDEOS, read_span
from llm2clip.indexer.records.sidecars import Sidecar


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """An image of a corpus, not yet read."""

    key: str
    """Stable name: the path below the root of the corpus with forward slashes; inside a container that of the
    container, ``#`` and the member (``a.tar#x.jpg``), the row (``a.parquet#17``) or the time (``a.mp4#t=12.5``)."""
    uri: str
    """Where it is: a file path or a URL, or that of a container, ``#`` and the rest of the key."""
    file: Path
    """The file on this machine that holds its bytes; of a remote image that is not here, its name."""
    path: str | None = None
    """That file below the root, if ``key`` is not it."""
    offset: int | None = None
    """Where in the file its bytes begin; None: they are the whole file."""
    size: int | None = None
    """How many bytes it has; 0 where only reading it would tell (a row of a table, a frame of a video), None if it
    cannot be read."""
    mtime_ns: int | None = None
    """When the file last changed, in nanoseconds since 1970; 0 where its store does not say, None if it cannot be
    read."""
    inner: Mapping[str, Any] | None = None
    """What else it takes to find its bytes again, if ``path``, ``offset`` and ``size`` do not say it all."""
    fetch: Callable[[], bytes] | None = None
    """Reads its bytes where they are not simply in ``file``, or faster together with their neighbours. Can be pickled:
    a build writes what it lists to a temporary file."""
    sidecars: int | None = None
    """A number that changes with the names, sizes and times of its caption and metadata files; None without any."""
    caption: str | None = None
    """The caption that came with it."""
    metadata: Mapping[str, Any] | None = None
    """What else came with it."""
    problem: str | None = None
    """Why it cannot be read at all, if that is known beforehand."""
    note: str | None = None
    """What is wrong with its caption or metadata, if anything."""
    describe: Callable[[], Sidecar] | None = None
    """Reads its caption and metadata where listing did not; called in the order of the listing, may raise ``OSError``
    and ``ValueError``."""

    def described(self) -> Record:
        """The record with its caption and metadata."""
        if self.describe is None:
            return self
        try:
            found = self.describe()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            found = Sidecar(note=f"caption or metadata left out: {reason}", failed=True)
        return replace(
            self,
            sidecars=None if found.failed else self.sidecars,
            caption=found.caption,
            metadata={**(found.metadata or {}), **(self.metadata or {})} or None,
            note=self.note or found.note,
            describe=None,
        )

    @property
    def locator(self) -> str | None:
        """How ``locators.read_located`` finds its bytes again, JSON; None: it is the whole file that ``key`` names."""
        if self.inner is None and self.offset is None:
            return None if self.path is None else _compact({"path": self.path})
        span = {} if self.offset is None else {"offset": self.offset, "size": self.size}
        return _compact({"path": self.path or self.key, **span, **(self.inner or {})})

    def read(self) -> bytes:
        """Its encoded bytes.

        Raises:
            OSError: it cannot be read.
            ValueError: it is larger than ``MAX_IMAGE_BYTES``, or already known to be unreadable.
        """
        if self.problem is not None:
            raise CorpusError(self.problem)
        if (self.size or 0) > MAX_IMAGE_BYTES:
            raise CorpusError(f"file of {self.size:,} bytes, more than the {MAX_IMAGE_BYTES:,} that are read")
        if self.fetch is not None:
            return self.fetch()
        if self.offset is None:
            return self.file.read_bytes()
        return read_span(self.file, offset=self.offset, size=self.size or 0)


class Corpus(ABC):
    """Images to index. Implementations are final; ``open_corpus`` chooses one."""

    kind: str
    """Which implementation it is, as the manifest says."""

    def __init__(self, spec: str, root: Path) -> None:
        self.spec, self.root = spec, root
        self.notes: list[str] = []
        """What a person should know about how it is read."""
        self.skipped: Counter[str] = Counter()
        """How many files of each of the ``other_image_endings``, and videos, the last listing did not read."""
        self.read_notes: list[str] = []
        """What became known while it was read."""
        self._begun: Iterator[Record] | None = None

    def records(self, *, captions: bool = True) -> Iterator[Record]:
        """All images, in an order that is the same every time.

        Args:
            captions: also read captions and metadata; without, listing is a matter of file names, and ``described``
                reads them.
        """
        listed = self._list()
        return (record.described() for record in listed) if captions else listed

    @abstractmethod
    def _list(self) -> Iterator[Record]:
        """All images, in an order that is the same every time, with ``describe`` where captions take reading."""

    def peek(self) -> Record | None:
        """The first image, None if there is none. The next call of ``listing`` goes on from here."""
        listed = self.listing()
        first = next(listed, None)
        self._begun = iter(()) if first is None else chain([first], listed)
        return first

    def listing(self) -> Iterator[Record]:
        """All images without captions: one pass, begun by ``peek`` if that was called."""
        begun, self._begun = self._begun, None
        return self.records(captions=False) if begun is None else begun

    def require_images(self) -> None:
        """Refuse a corpus without images, such as a disk that is not mounted.

        Raises:
            CorpusError: it has none.
        """
        if self.peek() is None:
            raise CorpusError(self.explain_empty())

    def skipped_note(self) -> str | None:
        """What a person should know once it was read, above all what was passed over; None if there is nothing."""
        videos = Counter({kind: number for kind, number in self.skipped.items() if kind in VIDEOS})
        heif = sum(number for kind, number in self.skipped.items() if kind in HEIF)
        parts = []
        if images := self.skipped - videos:
            remedy = "convert to JPEG what shall be found"
            if heif:
                remedy = "pip install 'llm2clip-retrieval[heic]' reads HEIC"
                remedy += "; convert the others to JPEG" if heif < images.total() else ""
            parts.append(
                f"{_counted(images, 'image')} of kinds that are not read{_some(images)} passed over: {remedy}"
            )
        if videos:
            parts.append(
                f"{_counted(videos, 'video')} passed over{_some(videos)}: --frame-interval 10 takes a frame every 10 s"
            )
        return "; ".join([*parts, *self.read_notes]) or None

    @abstractmethod
    def explain_empty(self) -> str:
        """Why ``records`` gave none: what was found, and what was looked for."""

    def identity(self) -> dict[str, str]:
        """What the manifest stores: two corpora are the same if these are, ``spec`` apart."""
        return {"kind": self.kind, "spec": self.spec, "root": str(self.root)}


def _counted(kinds: Counter[str], what: str) -> str:
    count = kinds.total()
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _some(kinds: Counter[str]) -> str:
    some = ", ".join(f"{number:,} {kind}" for kind, number in kinds.most_common(4))
    return f" ({some}{', ...' if len(kinds) > 4 else ''})"


def _compact(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def same_corpus(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two identities name the same images, however they were spelt."""
    return {**one, "spec": ""} == {**other, "spec": ""}
