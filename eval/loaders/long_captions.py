"""Long captions: ShareGPT4V, Urban1k, DOCCI, DCI."""

from __future__ import annotations

import re
from pathlib import Path

from llm2clip.common.files import counted
from llm2clip.eval.datasets.retrieval_set import UncheckedSet
from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.eval.loaders.annotations import entry, json_lines, json_list, read_json, read_text, take
from llm2clip.eval.loaders.protocol_files import Layout, files_hash, image

_SENTENCES = re.compile(r"\n|</s>|\.")


def sharegpt4v(layout: Layout) -> UncheckedSet:
    """The first records: image and the answer of its conversation, line breaks replaced by spaces."""
    folder, unchecked = layout.images(), layout.unchecked
    assert layout.protocol.first is not None
    for where, record in json_list(layout.path("captions"), first=layout.protocol.first):
        name = entry(record, "image", kind=str, where=where)
        if not name.startswith("sam/"):
            raise DatasetError(
                f"{where}: got image {name}, expected one of SA-1B (sam/images/...): another file or order"
            )
        turns = entry(record, "conversations", kind=list, where=where)
        if len(turns) < 2:
            raise DatasetError(
                f"{where}: got {counted(len(turns), 'turn')}, expected a question and its answer"
            )
        text = entry(take(turns[1], dict, where=where), "value", kind=str, where=where)
        unchecked.image(name, image(folder, name), where=where)
        unchecked.caption(text.replace("\n", " "), name, where=where)
    return unchecked


def urban1k(layout: Layout) -> UncheckedSet:
    """``1.txt`` belongs to ``1.jpg``; of each text the first line."""
    captions, images, unchecked = layout.path("captions"), layout.images(), layout.unchecked
    numbers = {int(path.stem) for path in captions.glob("*.txt") if path.stem.isdecimal()}
    numbers |= {int(path.stem) for path in images.glob("*.jpg") if path.stem.isdecimal()}
    longer, read = [], []
    for number in sorted(numbers):
        name, path = f"{number}.jpg", captions / f"{number}.txt"
        unchecked.image(name, image(images, name), where=str(images))
        if not path.is_file():
            continue
        read.append(path)
        first, _, rest = read_text(path).partition("\n")
        if rest.strip():
            longer.append(path.name)
        unchecked.caption(first.removesuffix("\r"), name, where=str(path))
    unchecked.files[layout.names("captions")[0]] = files_hash(read)
    if longer:
        unchecked.notes.append(
            f"{counted(len(longer), 'caption file')} with more lines; only the first is used"
        )
    return unchecked


def docci(layout: Layout) -> UncheckedSet:
    """The lines of split ``test``; the other splits are skipped."""
    path, folder, unchecked = layout.path("captions"), layout.images(), layout.unchecked
    splits = set()
    for where, record in json_lines(path):
        splits.add(split := entry(record, "split", kind=str, where=where))
        if split == "test":
            name = entry(record, "image_file", kind=str, where=where)
            unchecked.image(name, image(folder, name), where=where)
            unchecked.caption(entry(record, "description", kind=str, where=where), name, where=where)
    if not unchecked.images:
        raise DatasetError(f"{path}: got splits {sorted(splits)}, expected 'test' among them")
    return unchecked


def dci(layout: Layout) -> UncheckedSet:
    """All images that ``splits.json`` lists, each with its short and extra caption."""
    splits_path, annotations = layout.path("splits"), layout.path("captions")
    splits = take(read_json(splits_path), dict, where=str(splits_path))
    folder, unchecked = layout.images(), layout.unchecked
    read = []
    for split, names in splits.items():
        for name in take(names, list, where=f"{splits_path}, split {split}"):
            path = annotations / Path(str(name)).name
            if not path.is_file():
                raise DatasetError(f"{splits_path}: lists {name}, expected that file in {annotations}")
            read.append(path)
            record = take(read_json(path), dict, where=str(path))
            image_name = entry(record, "image", kind=str, where=str(path))
            short = entry(record, "short_caption", kind=str, where=str(path))
            extra = entry(record, "extra_caption", kind=str, where=str(path))
            unchecked.image(image_name, image(folder, image_name), where=str(path))
            unchecked.caption(sentences(f"{short}\n{extra}"), image_name, where=str(path))
    unchecked.files[annotations.relative_to(layout.root).as_posix() + "/"] = files_hash(read)
    return unchecked


def sentences(text: str) -> str:
    """LoTLIP's form: cut at line breaks, ``</s>`` and every full stop, trimmed, joined by full stop and space."""
    return ". ".join(part for each in _SENTENCES.split(text) if (part := each.strip()))
