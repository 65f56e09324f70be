"""Images, captions and which belong together: as a loader found them, and under the name of a protocol they fulfil."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from llm2clip.common.files import counted
from llm2clip.eval.datasets.protocols import COUNTED, Counts, Protocol, declared
from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.indexer.records.files import read_span

PARTIAL = "+partial"
"""Ends the name of every set that has less than its protocol declares."""

Direction = Literal["t2i", "i2t"]
DIRECTIONS: tuple[Direction, ...] = ("t2i", "i2t")
_NUMBERED = "images unverified: their names are numbers and no hashes of them are known, so any would pass"
"""Note on a set whose images cannot be told from others."""
_NAMED = 3
"""How many culprits a message names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRef:
    """One encoded image, read on demand."""

    key: str
    """Name within its set; unique there."""
    file: Path
    offset: int | None = None
    """Where in the file they begin; None: they are the whole file."""
    size: int | None = None
    """How many bytes of the file; None: all of it."""
    in_base64: bool = False
    """Whether those bytes are base64 text, as in Chinese-CLIP's ``*_imgs.tsv``."""
    fetch: Callable[[], bytes] | None = None
    """Reads it where it is no span of the file: in a zip or a table."""

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            DatasetError: It is not valid base64 where it should be, or its part of a container is damaged.
            OSError: The file cannot be read, or ends before the image does.
        """
        if self.fetch is not None:
            try:
                return self.fetch()
            except ValueError as error:
                raise DatasetError(f"{self.file}: image {self.key}: {error}") from error
        if self.offset is None or self.size is None:
            return self.file.read_bytes()
        content = read_span(self.file, offset=self.offset, size=self.size)
        if not self.in_base64:
            return content
        try:
            return base64.b64decode(content.translate(_URL_SAFE), validate=True)
        except binascii.Error as error:
            raise DatasetError(
                f"{self.file}: image {self.key} is no base64 ({error}), expected a whole one"
            ) from error


_URL_SAFE = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True, kw_only=True)
class RetrievalSet:
    """What one retrieval protocol is measured on.

    A set that bears a declared protocol's name has that protocol's counts; one that has less is named
    ``NAME+partial``. Nothing else can be constructed.
    """

    protocol: str
    """Declared id, ``ID+partial``, or the user's own name."""
    images: Sequence[ImageRef]
    captions: Sequence[str]
    """The texts, verbatim after the protocol's caption rule."""
    caption_images: Sequence[tuple[int, ...]]
    """Rows in ``images`` of each caption's right images; at least one each."""
    complete: bool
    """False if anything that the protocol declares is not there."""
    language: str | None = None
    """Code of the captions' language; None where the protocol has but one."""
    directions: tuple[Direction, ...] = DIRECTIONS
    """Directions in which published numbers exist, the main one first."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers should know, such as what is missing."""
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each annotation file by its path; of a folder of many, of the lines ``NAME SHA-256``."""
    missing: tuple[str, ...] = ()
    """Keys of images that the annotations name but that are not there."""

    def __post_init__(self) -> None:
        self._check_parts()
        base = self.protocol.removesuffix(PARTIAL)
        if self.complete == self.protocol.endswith(PARTIAL):
            right = base if self.complete else base + PARTIAL
            raise DatasetError(
                f"got a set with complete={self.complete} called '{self.protocol}', expected '{right}'"
            )
        if (protocol := declared(base)) is None:
            return
        if self.language not in (protocol.languages or (None,)):
            known = ", ".join(protocol.languages) or "no language"
            raise DatasetError(f"got '{base}' in language '{self.language}', expected one of: {known}")
        if self.complete and (short := protocol.difference(self.counts, language=self.language)):
            raise DatasetError(f"{base}: {short}; a part of it is called '{base}{PARTIAL}'")

    def _check_parts(self) -> None:
        if not self.images or not self.captions:
            raise DatasetError(
                f"{self.protocol}: got {len(self.images):,} images and {len(self.captions):,} captions, "
                "expected at least one of each"
            )
        if len(self.captions) != len(self.caption_images):
            raise DatasetError(
                f"{self.protocol}: got images for {len(self.caption_images):,} captions, "
                f"expected {len(self.captions):,}"
            )
        last = len(self.images) - 1
        for number, right in enumerate(self.caption_images):
            if not right or min(right) < 0 or max(right) > last:
                raise DatasetError(
                    f"{self.protocol}: caption {number} belongs to images {list(right)}, "
                    f"expected one or more of 0 to {last}"
                )
        for number, caption in enumerate(self.captions):
            if not caption.strip():
                raise DatasetError(f"{self.protocol}: caption {number} is empty, expected words")
        if len({image.key for image in self.images}) != len(self.images):
            raise DatasetError(f"{self.protocol}: two images have one key, expected each once")

    @property
    def id(self) -> str:
        """What results call it: the protocol, with ``:language`` where it has several."""
        return f"{self.protocol}:{self.language}" if self.language else self.protocol

    @property
    def counts(self) -> Counts:
        """Images, captions and right pairs."""
        return Counts(
            images=len(self.images), captions=len(self.captions), pairs=sum(map(len, self.caption_images))
        )

    def first(self, images: int) -> RetrievalSet:
        """The set with its first images only, and the captions that belong to any of them; named partial.

        Raises:
            DatasetError: None of the captions belongs to these images.
        """
        if images >= len(self.images):
            return self
        others = "; other notes are on all of them" if self.notes else ""
        kept = [
            (caption, right)
            for caption, every in zip(self.captions, self.caption_images, strict=True)
            if (right := tuple(row for row in every if row < images))
        ]
        return replace(
            self,
            protocol=self.protocol.removesuffix(PARTIAL) + PARTIAL,
            complete=False,
            images=self.images[:images],
            captions=[caption for caption, _ in kept],
            caption_images=[right for _, right in kept],
            notes=(*self.notes, f"only the first {images:,} of {len(self.images):,} images{others}"),
        )


@dataclass(kw_only=True)
class UncheckedSet:
    """Images and captions as an annotation file has them, in its order."""

    images: dict[str, ImageRef | None] = field(default_factory=dict)
    """Images by key; None: named by the annotations, but missing."""
    captions: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    """Each text with the keys of its right images."""
    own_ids: bool = False
    """Whether the file numbers images in its own way, so that known ids say nothing."""
    empty: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    """In words, what else makes the set partial."""
    notes: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the annotation files, by path below the data folder."""

    def image(self, key: str, ref: ImageRef | None, *, where: str) -> None:
        """Add an image; ``DatasetError`` if there is one of this key already."""
        if key in self.images:
            raise DatasetError(f"{where}: image {key} is there twice, expected each once")
        self.images[key] = ref

    def caption(self, text: object, *keys: str, where: str) -> None:
        """Add a caption of images that may be added later; an empty one is left out and remembered."""
        if not isinstance(text, str):
            raise DatasetError(f"{where}: caption is {type(text).__name__}, expected text")
        if not keys:
            raise DatasetError(f"{where}: caption belongs to no image, expected one at least")
        if text.strip():
            self.captions.append((text, tuple(dict.fromkeys(keys))))
        else:
            self.empty.append(where)

    def finish(self, name: str, *, language: str | None, protocol: Protocol | None) -> RetrievalSet:
        """Check and make the set: under its full name, or ``+partial`` where something is missing."""
        label = f"{name}:{language}" if language else name
        missing = [key for key, ref in self.images.items() if ref is None]
        present = [ref for ref in self.images.values() if ref is not None]
        if not self.images:
            raise DatasetError(f"{label}: the annotations name no image, expected at least one")
        if not present:
            raise DatasetError(
                f"{label}: none of the {len(missing):,} images exists, expected {some(missing)}"
            )
        if protocol is not None and protocol.numbered_images:
            self.notes.append(_NUMBERED)
        notes = [*self.notes, *self.lacking]
        if missing:
            notes.append(f"{len(missing):,} of {counted(len(self.images), 'image')} missing: {some(missing)}")
        if self.empty:
            notes.append(f"{counted(len(self.empty), 'caption')} without words, left out: {some(self.empty)}")
        if protocol is not None:
            notes += self._differences(protocol, language)
        linked = self._linked({ref.key: number for number, ref in enumerate(present)}, label)
        if not linked:
            raise DatasetError(
                f"{label}: none of {len(self.captions):,} captions has its image, expected all"
            )
        complete = len(notes) == len(self.notes)
        directions = protocol.directions if protocol else DIRECTIONS
        return RetrievalSet(
            protocol=name if complete else name + PARTIAL,
            language=language,
            images=tuple(present),
            captions=tuple(text for text, _ in linked),
            caption_images=tuple(right for _, right in linked),
            complete=complete,
            directions=tuple(each for wanted in directions for each in DIRECTIONS if each == wanted),
            notes=tuple(notes),
            files=dict(self.files),
            missing=tuple(missing),
        )

    def _linked(self, rows: dict[str, int], label: str) -> list[tuple[str, tuple[int, ...]]]:
        """Captions of present images, each with the rows of its right ones."""
        found = []
        for text, keys in self.captions:
            if unknown := [key for key in keys if key not in self.images]:
                raise DatasetError(
                    f"{label}: the caption {text[:40]!r} belongs to images that are not listed: "
                    f"{some(unknown)}; expected every one among the {len(self.images):,} listed"
                )
            if right := tuple(rows[key] for key in keys if key in rows):
                found.append((text, right))
        return found

    def _differences(self, protocol: Protocol, language: str | None) -> list[str]:
        """Where the annotations have less than declared; ``DatasetError`` where they have more or others."""
        expected = protocol.expected(language)
        got = Counts(
            images=len(self.images),
            captions=len(self.captions) + len(self.empty),
            pairs=sum(len(keys) for _, keys in self.captions) + len(self.empty),
        )
        for name in COUNTED:
            wanted, having = getattr(expected, name), getattr(got, name)
            if wanted is not None and having > wanted:
                raise DatasetError(
                    f"{protocol.id}: got {having:,} {name}, expected {wanted:,}: more than the protocol has, so "
                    "this is another split or another version"
                )
        comparable = got.images == expected.images and not self.own_ids
        known = protocol.image_ids_sha256 if comparable else None
        if known and (hashed := ids_sha256(self.images)) != known:
            raise DatasetError(
                f"{protocol.id}: the {got.images:,} image ids have SHA-256 {hashed[:12]}, expected "
                f"{known[:12]}: this is another split"
            )
        known_images = () if self.own_ids else protocol.known_images
        if absent := [key for key in known_images if key not in self.images]:
            cut = " or the file is cut off" if len(self.images) < (expected.images or 0) else ""
            raise DatasetError(
                f"{protocol.id}: image {absent[0]} is not among the {got.images:,} listed, expected it there: "
                f"this is another split{cut} (the first listed is {next(iter(self.images))})"
            )
        short = protocol.difference(got, language=language)
        return [f"the annotations have less than the protocol: {short}"] if short else []


def ids_sha256(keys: Iterable[str]) -> str:
    """SHA-256 of image keys, sorted, one per line."""
    return hashlib.sha256("".join(f"{key}\n" for key in sorted(keys)).encode()).hexdigest()


def some(names: list[str]) -> str:
    """The first few of them and how many more."""
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED:,} more"
