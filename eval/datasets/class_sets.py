"""Data for zero-shot classification: a folder of images per class, and the names and templates that authors publish."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm2clip.eval.datasets.tar_images import DatasetError

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_SYNSET = re.compile(r"n\d{8}")
_VALIDATION = re.compile(r"ILSVRC2012_val_\d{8}")
SINGLE_TEMPLATE = {"en": ("a photo of a {}",), "zh": ("一张{}的照片",)}
"""One template for each language; the English one is that of LLM2CLIP's starred rows."""


@dataclass(frozen=True, kw_only=True)
class ClassProtocol:
    """A published protocol of zero-shot classification."""

    id: str
    language: str
    """Of names and templates."""
    templates: int | None
    """Number of templates; ``None``: any, and the result has their hash."""
    files: str
    classes: int = 1000
    images: int = 50_000


PROTOCOLS = {
    one.id: one
    for one in (
        ClassProtocol(
            id="imagenet-1k-en",
            language="en",
            templates=80,
            files="the ILSVRC2012 validation images sorted into a folder per class (image-net.org, on request, "
            "non-commercial research); the 1,000 class names and 80 templates of openai/CLIP's notebook on prompts "
            "for ImageNet (MIT), one per line, names in the order of the folders' names",
        ),
        ClassProtocol(
            id="imagenet-1k-en-single",
            language="en",
            templates=1,
            files="as imagenet-1k-en, with one template",
        ),
        ClassProtocol(
            id="imagenet-1k-zh",
            language="zh",
            templates=None,
            files="the images of imagenet-1k-en; the Chinese class names and templates of OFA-Sys/Chinese-CLIP "
            "(MIT), one per line, names in the order of the folders' names",
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class ClassSet:
    """Images of known classes."""

    folders: tuple[str, ...]
    """Names of the folders, in order: class i is folder i."""
    images: tuple[Path, ...]
    labels: NDArray[np.int64]
    """Shape: (images,): class of each."""

    def protocol(self, wanted: ClassProtocol, *, templates: int) -> str:
        """The protocol's id if it is complete, ``ID+partial`` otherwise."""
        if alien := [one for one in self.folders if not _SYNSET.fullmatch(one)]:
            raise DatasetError(
                f"{wanted.id}: got the folder {alien[0]}, expected names such as n01440764. Measure classes of your "
                "own without --protocol"
            )
        stems = [one.stem for one in self.images]
        strange = next((stem for stem in stems if not _VALIDATION.fullmatch(stem)), None)
        if strange or len(set(stems)) < len(stems):
            raise DatasetError(
                f"{wanted.id}: got {strange or 'the same image in two places'}, expected each of "
                "ILSVRC2012_val_00000001.JPEG and so on once: this is another split"
            )
        whole = (
            len(self.folders) == wanted.classes
            and len(self.images) == wanted.images
            and wanted.templates in (None, templates)
        )
        return wanted.id if whole else f"{wanted.id}+partial"


def read_class_folders(path: str | Path) -> ClassSet:
    """List a folder that has one folder per class."""
    root = Path(path)
    if not root.is_dir():
        raise DatasetError(f"no folder {root}, expected one that has a folder of images for each class")
    folders = sorted(one for one in root.iterdir() if one.is_dir() and not one.name.startswith("."))
    if len(folders) < 2:
        raise DatasetError(
            f"{root} has {len(folders)} folders, expected one for each of at least two classes"
        )
    images: list[Path] = []
    labels: list[int] = []
    for number, folder in enumerate(folders):
        own = sorted(one for one in folder.rglob("*") if one.suffix.lower() in IMAGES and one.is_file())
        if not own:
            raise DatasetError(f"{folder} has no image, expected at least one. Remove the folder or fill it.")
        images += own
        labels += [number] * len(own)
    return ClassSet(
        folders=tuple(one.name for one in folders),
        images=tuple(images),
        labels=np.asarray(labels, dtype=np.int64),
    )


def own_title(folder: Path) -> str:
    """What results call a folder that is measured under no protocol; ``DatasetError`` for a protocol's name."""
    name = folder.resolve().name
    if name.lower().partition("+")[0] in PROTOCOLS:
        raise DatasetError(
            f"got a folder called '{name}', which is a protocol's name: measure it as that (--protocol {name}), or "
            "rename it"
        )
    return name


def read_class_names(path: str | Path, *, folders: Sequence[str]) -> list[str]:
    """Names of classes in the order of ``folders``: a JSON object or list, lines of text, or of folder, tab, name."""
    content = _read(path)
    if str(path).endswith(".json"):
        try:
            table = json.loads(content)
        except json.JSONDecodeError as error:
            raise DatasetError(f"{path} is no JSON ({error}), expected names of classes") from error
    else:
        lines = [line for line in content.splitlines() if line.strip()]
        cells = [line.split("\t", 1) for line in lines]
        table = dict(cells) if all(len(one) == 2 for one in cells) else lines
    if isinstance(table, dict):
        if missing := [folder for folder in folders if folder not in table]:
            raise DatasetError(
                f"{path} has no name for {len(missing)} of {len(folders)} folders, such as '{missing[0]}'"
            )
        table = [table[folder] for folder in folders]
    names = list(table)
    if len(names) != len(folders):
        raise DatasetError(f"{path} has {len(names)} names for {len(folders)} folders, expected one for each")
    for folder, name in zip(folders, names, strict=True):
        if not isinstance(name, str) or not name.strip():
            raise DatasetError(f"{path}: the name of '{folder}' is {name!r}, expected a text")
    return names


def same_names(names: Sequence[str]) -> list[str]:
    """Names of more than one class: those classes tie for every image, which then counts as missed."""
    return sorted({name for name in names if names.count(name) > 1})


def read_templates(path: str | Path) -> tuple[str, ...]:
    """Templates, one per line, each with one ``{}`` for the name."""
    lines = tuple(line.strip() for line in _read(path).splitlines() if line.strip())
    if not lines:
        raise DatasetError(f"{path} has no template, expected at least one line such as 'a photo of a {{}}'")
    for number, line in enumerate(lines, start=1):
        if line.count("{}") != 1:
            raise DatasetError(f"{path}, template {number}: got '{line}', expected one {{}} for the name")
    return lines


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
