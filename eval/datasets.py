"""Pictures with captions, read from WebDataset tar files without unpacking them.

A tar holds, for each key, a picture (``<key>.webp``, ``.png``, ``.jpg``) and ``<key>.json`` with ``caption``,
``captions`` by language or ``names`` by language; the format of the sample corpus.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from llm2clip.encoders import ImageSource
    from llm2clip.eval.positives import PositivesLike

_PICTURE_ENDINGS = frozenset({"webp", "png", "jpg", "jpeg", "gif", "bmp", "tif", "tiff"})
_MAX_JSON_BYTES = 1 << 20


class DatasetError(ValueError):
    """A data set that cannot be read or holds nothing to measure."""


@dataclass(frozen=True, kw_only=True)
class TarPicture:
    """One picture inside a tar file, read when asked for."""

    tar: Path
    """The tar file."""
    key: str
    """Member name without its ending."""
    ending: str
    """Ending of the member name, lower case, without the dot."""
    offset: int
    """First byte of the picture in the tar file."""
    size: int
    """Bytes of the picture."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Content of ``<key>.json``."""

    def read(self) -> bytes:
        """Return the encoded picture."""
        with self.tar.open("rb") as stream:
            stream.seek(self.offset)
            return stream.read(self.size)

    def texts(self, language: str) -> list[str]:
        """Captions, or names where there are no captions, in one language; empty if there are none."""
        for name in ("captions", "names"):
            by_language = self.metadata.get(name)
            if isinstance(by_language, Mapping) and language in by_language:
                found = by_language[language]
                return [found] if isinstance(found, str) else [str(text) for text in found]
        return []


@dataclass(frozen=True, kw_only=True)
class CaptionedImages:
    """A set of pictures and texts, and which belong together."""

    name: str
    """What results call this set."""
    images: Sequence[TarPicture | ImageSource]
    """Pictures, opened one batch at a time."""
    texts: Sequence[str]
    """Captions."""
    positives: PositivesLike
    """Which image belongs to which text; forms as in :func:`llm2clip.eval.retrieval_metrics`."""


def read_tar(path: str | Path) -> Iterator[TarPicture]:
    """List the pictures of a tar file in the order of their keys' first appearance, without decoding any.

    Raises:
        DatasetError: If the file is no tar, is cut off, or has a ``.json`` member that is not a JSON object.
        OSError: If the file cannot be opened.
    """
    tar = Path(path)
    pictures: dict[str, tuple[str, int, int]] = {}
    metadata: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                key, _, ending = member.name.rpartition(".")
                if not member.isfile() or not key:
                    continue
                if ending.lower() in _PICTURE_ENDINGS:
                    pictures[key] = (ending.lower(), member.offset_data, member.size)
                elif ending.lower() == "json":
                    metadata[key] = _read_json(archive, member, tar)
    except tarfile.TarError as error:
        raise DatasetError(
            f"{tar} is not a readable tar file ({error}). Make or download it again."
        ) from error
    for key, (ending, offset, size) in pictures.items():
        yield TarPicture(
            tar=tar, key=key, ending=ending, offset=offset, size=size, metadata=metadata.get(key, {})
        )


def _read_json(archive: tarfile.TarFile, member: tarfile.TarInfo, tar: Path) -> dict[str, Any]:
    if member.size > _MAX_JSON_BYTES:
        raise DatasetError(
            f"{tar}: {member.name} has {member.size} bytes, expected at most {_MAX_JSON_BYTES}"
        )
    stream = archive.extractfile(member)
    try:
        content = json.loads(stream.read()) if stream else None
    except ValueError as error:
        raise DatasetError(f"{tar}: {member.name} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{tar}: {member.name} holds {type(content).__name__}, expected a JSON object")
    return content


def read_captioned(
    *tars: str | Path, language: str | None = None, name: str | None = None
) -> CaptionedImages:
    """Read tar files as a set to measure on.

    Args:
        *tars: Files in the sample-corpus format.
        language: Take ``captions[language]``, or ``names[language]`` where an item has no captions, each a
            string or a list of strings; by default the field ``caption``. A picture without a text stays in
            the gallery.
        name: What results call this set; by default the first file's name and the language.

    Raises:
        DatasetError: If no picture or no text is found.
        OSError: If a file cannot be opened.
    """
    images = [picture for tar in tars for picture in read_tar(tar)]
    if not images:
        raise DatasetError(f"no picture in {', '.join(map(str, tars)) or 'nothing'}, expected at least one")
    texts: list[str] = []
    owner: list[int] = []
    for number, picture in enumerate(images):
        caption = picture.metadata.get("caption")
        own = picture.texts(language) if language else [caption] if isinstance(caption, str) else []
        texts += own
        owner += [number] * len(own)
    if not texts:
        wanted = f"captions or names in language '{language}'" if language else "a field 'caption'"
        raise DatasetError(f"{tars[0]} has {len(images)} pictures but no text, expected {wanted}")
    title = name or Path(tars[0]).stem + (f"-{language}" if language else "")
    return CaptionedImages(
        name=title, images=tuple(images), texts=tuple(texts), positives=np.asarray(owner, dtype=np.int64)
    )
