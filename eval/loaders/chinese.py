"""Chinese-CLIP's packaging (MUGE, Flickr30k-CN, COCO-CN), and the captions as their authors gave them out."""

from __future__ import annotations

import re

from llm2clip.common.files import counted
from llm2clip.eval.datasets.retrieval_set import UncheckedSet
from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.eval.loaders.annotations import entry, json_lines, read_lines
from llm2clip.eval.loaders.english import comma_lines, grouped, numbered_lines
from llm2clip.eval.loaders.protocol_files import Layout, base64_images, image

_TAGGED = re.compile(r"(?P<word>.*):[A-Za-z]{1,5}\d?")
_NUMBERED = re.compile(r"(?P<image>[^#\s]+)#(?:\w+#)?(?P<number>\d+)\s+(?P<text>.*)")


def tsv(layout: Layout) -> UncheckedSet:
    """``*_texts.jsonl`` and ``*_imgs.tsv``: a text may have several images, all images are the gallery."""
    path, unchecked = layout.path("captions"), layout.unchecked
    unchecked.own_ids = True
    found = base64_images(layout.images())
    for key, ref in found.items():
        unchecked.image(key, ref, where=str(path))
    seen = set()
    for where, record in json_lines(path):
        number = record.get("text_id", record.get("query_id"))
        if number is None or number in seen:
            said = "has no text_id" if number is None else f"text_id {number} is there twice"
            raise DatasetError(f"{where}: {said}, expected each text once")
        seen.add(number)
        keys = [str(key) for key in entry(record, "image_ids", "item_ids", kind=list, where=where)]
        if not keys:
            raise DatasetError(
                f"{where}: image_ids is empty, expected the right images: the answers of the test split are "
                "not given out, use the validation split"
            )
        for key in keys:
            if key not in unchecked.images:
                unchecked.image(key, None, where=where)
        unchecked.caption(entry(record, "text", "query_text", kind=str, where=where), *keys, where=where)
    return unchecked


def flickr30k_cn(layout: Layout) -> UncheckedSet:
    """Chinese-CLIP's packaging, or a text file whose part-of-speech tags are removed (``name#zhm#1 word:tag ...``)."""
    path = layout.path("captions")
    if path.suffix == ".jsonl":
        return tsv(layout)
    folder, unchecked = layout.images(), layout.unchecked
    stripped = 0
    if path.name.startswith("seg."):
        found = [(f"{name}.jpg", text) for name, text in numbered_lines(path, _NUMBERED, "image#0 caption")]
    else:
        found = comma_lines(layout, path)
    for name, texts in grouped(found):
        unchecked.image(name, image(folder, name), where=str(path))
        for text in texts:
            plain = untagged(text, where=f"{path}, image {name}")
            stripped += plain != text
            unchecked.caption(plain, name, where=f"{path}, image {name}")
    if stripped:
        unchecked.notes.append(f"part-of-speech tags were removed from {counted(stripped, 'caption')}")
    return unchecked


def coco_cn(layout: Layout) -> UncheckedSet:
    """Chinese-CLIP's packaging, or ``imageid.*-caption.txt`` with the list of the test images."""
    path = layout.path("captions")
    if path.suffix == ".jsonl":
        return tsv(layout)
    folder, unchecked = layout.images(), layout.unchecked
    split = layout.path("split")
    for name in filter(None, (line.strip() for line in read_lines(split))):
        unchecked.image(name, image(folder, f"{name}.jpg", key=name), where=str(split))
    for name, text in numbered_lines(path, _NUMBERED, "image#0 caption"):
        if name in unchecked.images:
            unchecked.caption(text, name, where=f"{path}, image {name}")
    return unchecked


def untagged(text: str, *, where: str) -> str:
    """The sentence of ``word:tag word:tag ...``; a text without tags comes back as it is."""
    words = text.split()
    matches = [match for word in words if (match := _TAGGED.fullmatch(word))]
    if not matches or 2 * len(matches) < len(words):
        return text
    if len(matches) < len(words):
        raise DatasetError(
            f"{where}: {len(matches)} of {len(words)} words carry a part-of-speech tag in {text[:40]!r}, "
            "expected all or none"
        )
    plain = ""
    for match in matches:
        latin = plain[-1:].isascii() and plain[-1:].isalnum() and match["word"][:1].isascii()
        plain += " " * (latin and match["word"][:1].isalnum()) + match["word"]
    return plain
