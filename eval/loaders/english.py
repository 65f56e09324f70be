"""Flickr30k and COCO in the forms in which their captions circulate."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llm2clip.common.files import counted
from llm2clip.eval.datasets.retrieval_set import UncheckedSet
from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.eval.loaders.annotations import entry, read_json, read_lines, take
from llm2clip.eval.loaders.protocol_files import Layout, image

_NUMBERED = re.compile(r"(?P<image>[^#\t]+)#(?P<number>\d+)\t(?P<text>.*)", re.DOTALL)


def karpathy(layout: Layout) -> UncheckedSet:
    """Karpathy's test split in any of its forms: CLIP_benchmark's text or COCO schema, BLIP's list, Karpathy's own."""
    path = layout.path("captions")
    if path.suffix == ".txt":
        found = grouped(comma_lines(layout, path))
    else:
        content = read_json(path)
        if isinstance(content, list):
            found = _listed(content, path)
        elif isinstance(content, dict) and "annotations" in content:
            found = _coco_schema(content, path)
        elif isinstance(content, dict) and "images" in content:
            found = _karpathy_schema(content, path)
        else:
            raise DatasetError(
                f"{path}: got {type(content).__name__} {sorted(content) if isinstance(content, dict) else ''}, "
                "expected a list of image and caption, or an object with 'images'"
            )
    return _fill(layout, found, where=str(path))


def coco(layout: Layout) -> UncheckedSet:
    """COCO's own annotations: ``images`` and ``annotations``."""
    path = layout.path("captions")
    content = take(read_json(path), dict, where=str(path))
    return _fill(layout, _coco_schema(content, path), where=str(path))


def token(layout: Layout) -> UncheckedSet:
    """Numbered captions, ``1000092795.jpg#0<TAB>text`` a line; ``.jpg`` may be absent, as in Flickr30k-CNA."""
    path = layout.path("captions")
    found = numbered_lines(path, _NUMBERED, "image#number<TAB>caption")
    named = ((name if name.endswith(".jpg") else f"{name}.jpg", text) for name, text in found)
    return _fill(layout, grouped(named), where=str(path))


def numbered_lines(path: Path, pattern: re.Pattern[str], form: str) -> list[tuple[str, str]]:
    """Image and text of each line that the pattern splits into ``image``, ``number`` and ``text``."""
    found, seen = [], set()
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        if not (match := pattern.fullmatch(line)):
            raise DatasetError(f"{where}: got {line[:40]!r}, expected '{form}'")
        if (own := (match["image"].removesuffix(".jpg"), match["number"])) in seen:
            raise DatasetError(f"{where}: {match['image']}#{own[1]} is there twice, expected each once")
        seen.add(own)
        found.append((match["image"], match["text"]))
    return found


def comma_lines(layout: Layout, path: Path) -> list[tuple[str, str]]:
    """Image and caption of each line ``1007129816.jpg,text``; quotation marks around commas are removed."""
    found = []
    quoted = 0
    for number, line in enumerate(read_lines(path), start=1):
        stem, comma, text = line.partition(".jpg,")
        if comma:
            found.append((f"{stem}.jpg", plain := unquoted(text)))
            quoted += plain != text
        elif number > 1 and line.strip():
            raise DatasetError(f"{path}, line {number}: got {line[:40]!r}, expected 'image.jpg,caption'")
    if quoted:
        layout.unchecked.notes.append(
            f"the file's quotation marks were removed from {counted(quoted, 'caption')} with commas"
        )
    return found


def unquoted(text: str) -> str:
    """A field of a comma-separated file without the quotation marks that commas or quotation marks in it require."""
    inner = text[1:-1].replace('""', "")
    needed = "," in text or '"' in text[1:-1]
    if len(text) < 2 or text[0] != '"' or text[-1] != '"' or '"' in inner or not needed:
        return text
    return text[1:-1].replace('""', '"')


def grouped(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Captions of each image, both in the order in which they first occur."""
    captions: dict[str, list[str]] = {}
    for name, text in pairs:
        captions.setdefault(name, []).append(text)
    return list(captions.items())


def _listed(content: list[Any], path: Path) -> list[tuple[str, list[str]]]:
    found = []
    for number, record in enumerate(content):
        where = f"{path}, record {number}"
        record = take(record, dict, where=where)
        image = entry(record, "image", kind=str, where=where)
        texts = record.get("caption")
        found.append(
            (Path(image).name, [texts] if isinstance(texts, str) else take(texts, list, where=where))
        )
    return found


def _karpathy_schema(content: dict[str, Any], path: Path) -> list[tuple[str, list[str]]]:
    found = []
    splits = set()
    for number, record in enumerate(entry(content, "images", kind=list, where=str(path))):
        where = f"{path}, image {number}"
        record = take(record, dict, where=where)
        splits.add(split := entry(record, "split", kind=str, where=where))
        if split == "test":
            sentences = entry(record, "sentences", kind=list, where=where)
            texts = [entry(take(each, dict, where=where), "raw", kind=str, where=where) for each in sentences]
            found.append((entry(record, "filename", kind=str, where=where), texts))
    if not found:
        raise DatasetError(f"{path}: got images of {sorted(splits)}, expected the split 'test' among them")
    return found


def _coco_schema(content: dict[str, Any], path: Path) -> list[tuple[str, list[str]]]:
    names: dict[object, str] = {}
    for number, record in enumerate(entry(content, "images", kind=list, where=str(path))):
        where = f"{path}, image {number}"
        record = take(record, dict, where=where)
        key = record.get("id")
        if key in names:
            raise DatasetError(f"{where}: id {key} is there twice, expected each once")
        names[key] = Path(entry(record, "file_name", kind=str, where=where)).name
    texts: dict[object, list[str]] = {key: [] for key in names}
    ids = set()
    for number, record in enumerate(entry(content, "annotations", kind=list, where=str(path))):
        where = f"{path}, annotation {number}"
        record = take(record, dict, where=where)
        key, own = record.get("image_id"), record.get("id")
        if key not in texts:
            raise DatasetError(f"{where}: image_id {key} is not listed, expected one of 'images'")
        if own is not None and own in ids:
            raise DatasetError(f"{where}: id {own} is there twice, expected each once")
        ids.add(own)
        texts[key].append(entry(record, "caption", kind=str, where=where))
    return [(name, texts[key]) for key, name in names.items()]


def _fill(layout: Layout, found: Iterable[tuple[str, list[str]]], *, where: str) -> UncheckedSet:
    folder = layout.images()
    for name, texts in found:
        layout.unchecked.image(name, image(folder, name), where=where)
        for text in texts[: layout.protocol.each]:
            layout.unchecked.caption(text, name, where=f"{where}, image {name}")
    return layout.unchecked
