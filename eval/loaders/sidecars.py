"""Caption files as they lie beside images: those that say nothing, and those whose image is not there."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llm2clip.indexer.records.record import Record

_KINDS = (".txt", ".json")


@dataclass(frozen=True, kw_only=True)
class Sidecars:
    """What there is besides the images that were read."""

    blank: frozenset[str]
    """Keys of images with a ``.txt`` that holds no word, and no caption from elsewhere."""
    alone: tuple[str, ...]
    """Files ``.txt`` and ``.json`` without an image of their name, below the folder or in the tar."""


def sidecars(records: Iterable[Record], root: Path) -> Sidecars:
    """Look beside the images of a corpus.

    Args:
        records: All of its images, none of them with a note on an unreadable caption.
        root: The folder they were read from; not looked at for tars.

    Raises:
        OSError: A folder or tar cannot be read.
    """
    tars: dict[Path, dict[int, Record]] = {}
    loose: dict[str, list[Record]] = {}
    for record in records:
        if record.offset is not None:
            tars.setdefault(record.file, {})[record.offset] = record
        else:
            loose.setdefault(str(Path(record.key).with_suffix("")), []).append(record)
    blank: set[str] = set()
    alone: list[str] = []
    if loose:
        files = [file.relative_to(root) for file in _files(root)]
        _look([(file, str(file)) for file in files], loose, blank, alone)
    for file, images in tars.items():
        with tarfile.open(file) as archive:
            members = [one for one in archive if one.isfile()]
        owned: dict[str, list[Record]] = {}
        for one in members:
            if image := images.get(one.offset_data):
                owned.setdefault(_stem(one.name), []).append(image)
        _look(
            [(Path(_stem(one.name) + Path(one.name).suffix), one.name) for one in members],
            owned,
            blank,
            alone,
        )
    return Sidecars(blank=frozenset(blank), alone=tuple(alone))


def _look(
    files: list[tuple[Path, str]], images: dict[str, list[Record]], blank: set[str], alone: list[str]
) -> None:
    """Sort the files of one folder or tar; each is given with what messages call it."""
    for file, called in files:
        if file.suffix.lower() not in _KINDS:
            continue
        owners = images.get(str(file.with_suffix("")))
        if owners is None:
            alone.append(called)
        elif file.suffix == ".txt":
            blank.update(one.key for one in owners if one.caption is None and not one.metadata)


def _files(root: Path) -> list[Path]:
    found = []
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        found += [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
    return found


def _stem(name: str) -> str:
    """A member's name up to the first dot, as WebDataset groups samples."""
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}"
