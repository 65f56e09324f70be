"""``RetrievalSet``: images, captions and which belong together, under the name of a protocol it fulfils."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from llm2clip.eval.datasets.protocols import Counts, declared
from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.indexer.records.files import read_span

PARTIAL = "+partial"
"""Ends the name of every set that has less than its protocol declares."""

Direction = Literal["t2i", "i2t"]
DIRECTIONS: tuple[Direction, ...] = ("t2i", "i2t")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRef:
    """One encoded image, read when asked for."""

    key: str
    """Name within its set; unique there."""
    file: Path
    """The file that holds its bytes."""
    offset: int | None = None
    """Where in the file they begin; None: they are the whole file."""
    size: int | None = None
    """How many bytes of the file; None: all of it."""
    in_base64: bool = False
    """Whether those bytes are base64 text, as in Chinese-CLIP's ``*_imgs.tsv``."""

    def read(self) -> bytes:
        """Return the encoded image.

        Raises:
            DatasetError: If it is no base64 where it should be.
            OSError: If the file cannot be read or ends before.
        """
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
    """The gallery, in a fixed order."""
    captions: Sequence[str]
    """The texts, verbatim after the protocol's caption rule."""
    caption_images: Sequence[tuple[int, ...]]
    """Places in ``images`` of each caption's right images; at least one each."""
    complete: bool
    """False if anything that the protocol declares is not there."""
    language: str | None = None
    """Code of the captions' language; None where the protocol has but one."""
    directions: tuple[Direction, ...] = DIRECTIONS
    """Directions in which published numbers exist, the main one first."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers should know, such as what is missing."""
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each annotation file that was read, by its path below the data folder; of a folder of many small ones,
    one of the lines ``NAME SHA-256``."""
    missing: tuple[str, ...] = ()
    """Keys of images that the annotations name but that are not there."""

    def __post_init__(self) -> None:
        """Refuse a set that contradicts itself or its name; ``DatasetError``."""
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
            DatasetError: If none of the captions belongs to these.
        """
        if images >= len(self.images):
            return self
        others = "; other notes are on all of them" if self.notes else ""
        kept = [
            (caption, right)
            for caption, every in zip(self.captions, self.caption_images, strict=True)
            if (right := tuple(place for place in every if place < images))
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
