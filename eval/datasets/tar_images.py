"""Images with captions, read from WebDataset tar files without unpacking them, by the indexer's own reader.

A tar holds images (``<name>.webp``, ``.png``, ``.jpg``), each beside ``<name>.json`` with ``caption``, ``captions``
by language or ``names`` by language; the format of the sample corpus.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm2clip.common.files import counted
from llm2clip.indexer.containers.tar import TarCorpus
from llm2clip.indexer.core.errors import CorpusError
from llm2clip.indexer.records.files import read_span

if TYPE_CHECKING:
    from llm2clip.encoders import ImageSource
    from llm2clip.eval.metrics.rank_positions import PositivesLike


class DatasetError(ValueError):
    """A data set that cannot be read or holds nothing to measure."""


@dataclass(frozen=True, kw_only=True)
class TarImage:
    """One image inside a tar file, read on demand."""

    tar: Path
    key: str
    offset: int
    """First byte of the image in the tar file."""
    size: int
    caption: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def read(self) -> bytes:
        """Return the encoded image."""
        return read_span(self.tar, offset=self.offset, size=self.size)

    def texts(self, language: str) -> list[str]:
        """Captions, or names where there are no captions, in one language; empty if there are none."""
        for name in ("captions", "names"):
            by_language = self.metadata.get(name)
            if isinstance(by_language, Mapping) and language in by_language:
                return [str(text) for text, _ in flat_texts(by_language[language])]
        return []


def flat_texts(value: object) -> list[tuple[object, str]]:
    """Each text of what stands for a language, with how it was made where that is said."""
    if isinstance(value, list | tuple):
        return [each for part in value for each in flat_texts(part)]
    if isinstance(value, Mapping):
        kind = value.get("kind")
        own = flat_texts(value.get("captions", ()))
        return [(text, kind if isinstance(kind, str) else "") for text, _ in own]
    return [(value, "")]


@dataclass(frozen=True, kw_only=True)
class CaptionedImages:
    """A set of images and texts, and which belong together."""

    name: str
    images: Sequence[TarImage | ImageSource]
    """Images, opened one batch at a time."""
    texts: Sequence[str]
    positives: PositivesLike
    """Which image belongs to which text; forms as in :func:`llm2clip.eval.retrieval_metrics`."""


def read_tar(path: str | Path) -> Iterator[TarImage]:
    """List the images of a tar file as the indexer reads them; what an index would leave out is an error here."""
    try:
        for record in TarCorpus(str(path)).records():
            if trouble := record.problem or record.note:
                raise DatasetError(f"{record.key}: {trouble}. Make or download {path} again.")
            assert record.offset is not None
            assert record.size is not None
            yield TarImage(
                tar=record.file,
                key=record.key.partition("#")[2],
                offset=record.offset,
                size=record.size,
                caption=record.caption,
                metadata=record.metadata or {},
            )
    except CorpusError as error:
        raise DatasetError(str(error)) from error


def read_captioned(
    *tars: str | Path, language: str | None = None, name: str | None = None
) -> CaptionedImages:
    """Read tar files as a set to measure on.

    Args:
        *tars: Files in the sample-corpus format.
        language: Take ``captions[language]``, or ``names[language]`` where an item has no captions, each a
            string or a list of strings; by default the image's one caption. An image without a text stays
            in the gallery.
        name: What results call this set; by default the first file's name and the language.

    Raises:
        DatasetError: If a file cannot be read, or no image or no text is found.
    """
    images = [image for tar in tars for image in read_tar(tar)]
    if not images:
        raise DatasetError(f"no image in {', '.join(map(str, tars)) or 'nothing'}, expected at least one")
    texts: list[str] = []
    owner: list[int] = []
    for number, image in enumerate(images):
        own = image.texts(language) if language else [image.caption] if image.caption else []
        texts += own
        owner += [number] * len(own)
    if not texts:
        wanted = f"captions or names in language '{language}'" if language else "captions"
        raise DatasetError(f"{tars[0]} has {counted(len(images), 'image')} but no text, expected {wanted}")
    title = name or Path(tars[0]).stem + (f"-{language}" if language else "")
    return CaptionedImages(
        name=title, images=tuple(images), texts=tuple(texts), positives=np.asarray(owner, dtype=np.int64)
    )
