"""``Record`` and ``Corpus``: pictures one by one, under stable names, wherever they come from."""

from __future__ import annotations

import hashlib
import json
import stat
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llm2clip.indexer.errors import CorpusError
from llm2clip.indexer.location import sample_folder

MAX_PICTURE_BYTES = 256 * 2**20
"""A larger file is not read: it is no picture that anybody would search."""
MAX_SIDECAR_BYTES = 2**20
"""A larger caption or metadata file is not read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A picture of a corpus, not yet read."""

    key: str
    """Stable name: the path below the root of the corpus with forward slashes; inside a container that of the
    container, ``#`` and the member (``a.tar#x.jpg``), the row (``a.parquet#17``) or the time (``a.mp4#t=12.5``)."""
    uri: str
    """Where it is: a file path or a URL, or that of a container, ``#`` and the rest of the key."""
    file: Path
    """The file on this machine that holds its bytes; of a remote picture that is not here, its name."""
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
    """Reads its bytes where they are not simply in ``file``, or faster together with their neighbours."""
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
            ValueError: it is larger than ``MAX_PICTURE_BYTES``, or already known to be unreadable.
        """
        if self.problem is not None:
            raise CorpusError(self.problem)
        if (self.size or 0) > MAX_PICTURE_BYTES:
            raise CorpusError(
                f"file of {self.size:,} bytes, more than the {MAX_PICTURE_BYTES:,} that are read"
            )
        if self.fetch is not None:
            return self.fetch()
        if self.offset is None:
            return self.file.read_bytes()
        return read_span(self.file, offset=self.offset, size=self.size or 0)


class Corpus(ABC):
    """Pictures to index. Implementations are final; ``open_corpus`` chooses one."""

    kind: str
    """Which implementation it is, as the manifest says."""

    def __init__(self, spec: str, root: Path) -> None:
        self.spec, self.root = spec, root
        self.notes: list[str] = []
        """What a person should know about how it is read."""
        self.passed_over: Counter[str] = Counter()
        """How many files of each of the ``other_picture_endings``, and videos, the last listing did not read."""
        self.late: list[str] = []
        """What became known while it was read."""

    @abstractmethod
    def records(self, *, captions: bool = True) -> Iterator[Record]:
        """All pictures, in an order that is the same every time.

        Args:
            captions: also read captions and metadata; without, listing is a matter of file names.
        """

    def passed_over_note(self) -> str | None:
        """What a person should know once it was read, above all what was passed over; None if there is nothing."""
        videos = Counter({kind: number for kind, number in self.passed_over.items() if kind in VIDEOS})
        heif = sum(number for kind, number in self.passed_over.items() if kind in _HEIF)
        parts = []
        if pictures := self.passed_over - videos:
            remedy = "convert to JPEG what shall be found"
            if heif:
                remedy = "pip install 'llm2clip-retrieval[heic]' reads HEIC"
                remedy += "; convert the others to JPEG" if heif < pictures.total() else ""
            parts.append(
                f"{_counted(pictures, 'picture')} of kinds that are not read{_some(pictures)} passed over: {remedy}"
            )
        if videos:
            parts.append(
                f"{_counted(videos, 'video')} passed over{_some(videos)}: --every 10 takes a frame every 10 s"
            )
        return "; ".join([*parts, *self.late]) or None

    @abstractmethod
    def emptiness(self) -> str:
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


def root_of(identity: Mapping[str, str]) -> str:
    """The folder below which the keys of a corpus lie; that of the sample corpus moves with the installation."""
    return str(sample_folder()) if identity["kind"] == "sample" else identity["root"]


def same_corpus(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two identities name the same pictures, however they were spelt."""
    return {**one, "spec": ""} == {**other, "spec": ""}


def content_hash(content: bytes) -> bytes:
    """BLAKE2b of the encoded picture, 16 bytes."""
    return hashlib.blake2b(content, digest_size=16).digest()


def read_whole(file: Path) -> bytes:
    """The content of a file.

    Raises:
        OSError: it cannot be read.
        CorpusError: it is larger than ``MAX_PICTURE_BYTES``, or no file that ends.
    """
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise CorpusError(f"{file} is not a regular file: expected a picture")
    if found.st_size > MAX_PICTURE_BYTES:
        raise CorpusError(
            f"file of {found.st_size:,} bytes, more than the {MAX_PICTURE_BYTES:,} that are read"
        )
    return file.read_bytes()


def require_span(offset: int, size: int) -> None:
    """Refuse a place in a file where no picture can lie: it may come from an index that is anybody's.

    Raises:
        CorpusError: a number is negative, or the size larger than ``MAX_PICTURE_BYTES``.
    """
    if offset < 0 or not 0 <= size <= MAX_PICTURE_BYTES:
        raise CorpusError(
            f"got a span of {size:,} bytes from byte {offset:,}, expected at most {MAX_PICTURE_BYTES:,} from 0 on: "
            "build the index again"
        )


def read_span(file: Path, *, offset: int, size: int) -> bytes:
    """``size`` bytes of a file from ``offset``: one seek.

    Raises:
        OSError: the file cannot be read, or ends before.
        CorpusError: see ``require_span``.
    """
    require_span(offset, size)
    with open(file, "rb", buffering=0) as stream:
        stream.seek(offset)
        content = stream.read(size)
        while len(content) < size and (more := stream.read(size - len(content))):
            content += more
    if len(content) < size:
        raise OSError(f"{file} ends {size - len(content):,} bytes early")
    return content


_ALWAYS = frozenset([".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp"])
_WHERE_PILLOW_CAN = {"avif": frozenset([".avif"]), "jpg_2000": frozenset([".jp2", ".j2k"])}
_HEIF = frozenset([".heic", ".heif", ".hif"])
_NEVER = frozenset([".jxl"])
_CAMERAS = "3fr arw cr2 cr3 crw dcr dng erf iiq kdc mrw nef nrw orf pef raf rw2 sr2 srf srw x3f"


VIDEOS = frozenset(
    [
        ".3gp",
        ".avi",
        ".flv",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".ogv",
        ".webm",
        ".wmv",
    ]
)
"""Endings of videos."""


@cache
def picture_endings() -> frozenset[str]:
    """Endings of pictures that are read, lower case with their dot: those that this Pillow and its plugin decode."""
    from PIL import features

    more = _HEIF if find_spec("pillow_heif") else frozenset()
    return _ALWAYS.union(more, *(kinds for name, kinds in _WHERE_PILLOW_CAN.items() if features.check(name)))


@cache
def other_picture_endings() -> frozenset[str]:
    """Endings of pictures that are not read: those of telephones and cameras that Pillow cannot decode."""
    cameras = (f".{kind}" for kind in _CAMERAS.split())
    return _NEVER.union(_HEIF, cameras, *_WHERE_PILLOW_CAN.values()) - picture_endings()


def ending(name: str) -> str:
    """The ending of a file name without folders, lower case with its dot; empty if it has none."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def printable(name: str) -> str:
    """A file name as text that can be stored: bytes that are no UTF-8 are spelt out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """Caption and metadata of a picture."""

    caption: str | None = None
    metadata: Mapping[str, Any] | None = None
    note: str | None = None


def parse_sidecar(metadata: bytes | None, text: bytes | None) -> Sidecar:
    """Caption and metadata from the content of a ``.json`` and a ``.txt`` file.

    The caption is ``caption`` or ``text`` of the JSON object (of a list of strings the first), else the text file.
    The rest of the object is the metadata; a list of captions stays there too. What cannot be read is noted.
    """
    rest: dict[str, Any] = {}
    caption = note = None
    if metadata is not None:
        try:
            parsed = json.loads(metadata.decode("utf-8-sig"))
            if not isinstance(parsed, dict):
                raise ValueError(f"expected an object, got {type(parsed).__name__}")
            if b"\\ud" in metadata.lower():  # half a surrogate pair cannot be stored
                json.dumps(parsed, ensure_ascii=False).encode()
            rest, caption = _split(parsed)
        except (ValueError, RecursionError) as error:
            note = f"metadata left out, not usable JSON: {error}"
    if caption is None and text is not None:
        try:
            caption = text.decode("utf-8-sig").strip() or None
        except UnicodeDecodeError as error:
            note = f"caption left out, not UTF-8: {error}"
    return Sidecar(caption=caption, metadata=rest or None, note=note)


def _split(parsed: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    for name in ("caption", "text"):
        value = parsed.get(name)
        if isinstance(value, str) and value.strip():
            return {key: other for key, other in parsed.items() if key != name}, value.strip()
        if isinstance(value, list) and value and isinstance(value[0], str) and value[0].strip():
            return parsed, value[0].strip()
    return parsed, None
