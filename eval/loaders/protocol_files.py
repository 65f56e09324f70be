"""Where a protocol's files lie below the data folder, and which of the accepted forms is there."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from llm2clip.eval.datasets.protocols import Need, Protocol, source
from llm2clip.eval.datasets.retrieval_set import ImageRef, UncheckedSet
from llm2clip.eval.datasets.tar_images import DatasetError

_COCO = re.compile(r"COCO_(train2014|val2014)_\d+\.jpg")
_CHUNK = 1 << 20
_BY_LINES = (".txt", ".token")


class Layout:
    """The files of one protocol and language below a data folder; missing ones are a ``DatasetError``."""

    def __init__(self, protocol: Protocol, *, root: Path, language: str | None) -> None:
        """Files are searched on demand."""
        self.protocol, self.root, self.language = protocol, root, language
        self.unchecked = UncheckedSet()
        """What is read so far."""

    def path(self, role: str) -> Path:
        """The one accepted place of a role that is there; annotation files are hashed."""
        number = self._chosen(role)
        return self._noted(self.names(role)[number])

    def every(self, role: str) -> list[Path]:
        """All places of a role, each of which must be there."""
        for name in self.names(role):
            if not (self.root / name).exists():
                raise DatasetError(self._absent(role, [name]))
        return [self._noted(name) for name in self.names(role)]

    def images(self) -> Path:
        """The place of the images that belongs to the form of the captions."""
        names = self.names("images")
        name = names[min(self._chosen("captions"), len(names) - 1)] if len(names) > 1 else names[0]
        if not (self.root / name).exists():
            raise DatasetError(self._absent("images", [name]))
        return self.root / name

    def names(self, role: str) -> list[str]:
        """The accepted places of a role below the data folder, in this language."""
        spelt = self.protocol.spelling.get(self.language or "", self.language or "")
        return [name.replace("{language}", spelt) for name in self.need(role).paths]

    def need(self, role: str) -> Need:
        """The declaration of a role."""
        return self.protocol.needs[role]

    def _chosen(self, role: str) -> int:
        names = self.names(role)
        for number, name in enumerate(names):
            if (self.root / name).exists():
                return number
        raise DatasetError(self._absent(role, names))

    def _absent(self, role: str, names: list[str]) -> str:
        need = self.need(role)
        publishers = " or ".join(source(key).publisher for key in need.sources)
        return (
            f"{self.protocol.id}: no {' nor '.join(names)} in {self.root}, expected {need.what} "
            f"from {publishers}. See: llm2clip-eval prepare {self.protocol.id}"
        )

    def _noted(self, name: str) -> Path:
        path = self.root / name
        if path.is_file():
            self.unchecked.files[name] = file_hash(path, "sha256")
            if path.suffix in _BY_LINES and _unended(path):
                self.unchecked.notes.append(
                    f"{name} ends without a line break: published so, or cut off in its last line"
                )
        return path


def file_hash(path: Path, algorithm: str) -> str:
    """Hexadecimal hash of a file, read in pieces."""
    hashed = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as stream:
        while piece := stream.read(_CHUNK):
            hashed.update(piece)
    return hashed.hexdigest()


def files_hash(paths: Iterable[Path]) -> str:
    """One SHA-256 for many small files: of the lines ``NAME SHA-256`` in the given order, names without folders."""
    lines = (f"{path.name} {file_hash(path, 'sha256')}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _unended(path: Path) -> bool:
    with open(path, "rb") as stream:
        if not stream.seek(0, os.SEEK_END):
            return False
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) != b"\n"


def image(folder: Path, name: str, *, key: str | None = None) -> ImageRef | None:
    """An image by its name below a folder, COCO's also in ``train2014/`` and ``val2014/``; None if missing or empty."""
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/"):
        raise DatasetError(f"got the image name {name!r}, expected one below {folder}")
    places = [folder / name]
    if match := _COCO.fullmatch(parts[-1]):
        places.insert(0, folder / match[1] / parts[-1])
    for place in places:
        if place.is_file() and place.stat().st_size:
            return ImageRef(key=key or name, file=place)
    return None


def base64_images(path: Path) -> Mapping[str, ImageRef]:
    """Index Chinese-CLIP's ``*_imgs.tsv`` (``id<TAB>base64`` a line) without decoding or holding any image."""
    found: dict[str, ImageRef] = {}
    offset = 0
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            name, tab, content = line.partition(b"\t")
            size = len(content.rstrip(b"\r\n"))
            where = f"{path}, line {number}"
            if not tab or not name or not size:
                raise DatasetError(f"{where}: begins {line[:40]!r}, expected 'id<TAB>base64 of the image'")
            if size % 4:
                raise DatasetError(
                    f"{where}: base64 of {size:,} characters, expected a multiple of 4: the file is cut off"
                )
            key = name.decode("utf-8", "replace")
            if key in found:
                raise DatasetError(f"{where}: image {key} is there twice, expected each once")
            found[key] = ImageRef(
                key=key, file=path, offset=offset + len(name) + 1, size=size, in_base64=True
            )
            offset += len(line)
    return found
