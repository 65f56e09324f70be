"""Captions in many languages: Crossmodal-3600, XTD10, Multi30k, xFlickr&CO, WIT."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from llm2clip.common.files import counted
from llm2clip.eval.datasets.retrieval_set import ImageRef, UncheckedSet
from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.eval.loaders.annotations import entry, json_lines, read_lines, take
from llm2clip.eval.loaders.protocol_files import Layout, image
from llm2clip.indexer.records.files import ending, image_endings


def xm3600(layout: Layout) -> UncheckedSet:
    """``captions.jsonl``: of each image the captions of one language, all or the first."""
    path, folder, unchecked = layout.path("captions"), layout.images(), layout.unchecked
    assert layout.language is not None
    total = 0
    for where, record in json_lines(path):
        key = entry(record, "image/key", kind=str, where=where)
        unchecked.image(key, image(folder, f"{key}.jpg", key=key), where=where)
        own = entry(record, layout.language, kind=dict, where=where)
        texts = entry(own, "caption", kind=list, where=f"{where}, '{layout.language}'")
        for text in texts[: layout.protocol.each]:
            unchecked.caption(text, key, where=f"{where}, '{layout.language}'")
        each = (value.get("caption", ()) for value in record.values() if isinstance(value, dict))
        total += sum(len(every) for every in each if isinstance(every, list))
    expected = layout.protocol.total_captions
    if expected is not None and total != expected:
        said = f"got {counted(total, 'caption')} in all languages together, expected {expected:,}"
        if total > expected:
            raise DatasetError(f"{path}: {said}: another version of the file")
        unchecked.lacking.append(said)
    return unchecked


def aligned(layout: Layout) -> UncheckedSet:
    """Line i of each caption file belongs to line i of the file of names."""
    names_path = layout.path("names")
    names = [line.strip() for line in read_lines(names_path)]
    folder, unchecked = layout.images(), layout.unchecked
    files = layout.every("captions") if layout.need("captions").all_of else [layout.path("captions")]
    columns = []
    for path in files:
        columns.append(lines := read_lines(path))
        if len(lines) != len(names):
            raise DatasetError(
                f"{path}: got {counted(len(lines), 'line')}, expected {len(names):,}, one for each line of {names_path}"
            )
    for number, name in enumerate(names):
        file = name if ending(name) else f"{name}.jpg"
        unchecked.image(file, image(folder, file), where=f"{names_path}, line {number + 1}")
        for path, lines in zip(files, columns, strict=True):
            unchecked.caption(lines[number], file, where=f"{path}, line {number + 1}")
    return unchecked


def xflickrco(layout: Layout) -> UncheckedSet:
    """One sentence an image, of Flickr30k or of COCO."""
    unchecked = layout.unchecked
    flickr, coco = layout.images(), layout.path("coco")
    for where, record in json_lines(layout.path("captions")):
        name = Path(entry(record, "img_path", kind=str, where=where)).name
        found = image(coco if name.startswith("COCO_") else flickr, name)
        unchecked.image(name, found, where=where)
        for text in entry(record, "sentences", kind=list, where=where):
            unchecked.caption(text, name, where=where)
    return unchecked


def wit(layout: Layout) -> UncheckedSet:
    """Rows of one ``image_url`` are one image, found by a ``wit_ix`` of its rows or by the name in its address."""
    path, unchecked = layout.path("captions"), layout.unchecked
    rows: dict[str, list[tuple[str, str, str]]] = {}
    for where, record in json_lines(path):
        if (language := entry(record, "language", kind=str, where=where)) != layout.language:
            raise DatasetError(f"{where}: got language '{language}', expected '{layout.language}'")
        url = entry(record, "image_url", kind=str, where=where)
        text = entry(record, "caption_reference_description", kind=str, where=where)
        rows.setdefault(url, []).append((text, entry(record, "wit_ix", kind=str, where=where), where))
    files = _by_stem(take(layout.images(), Path, where=str(path)))
    taken: dict[Path, str] = {}
    for url, own in rows.items():
        address = Path(unquote(urlsplit(url).path)).name
        quoted = Path(urlsplit(url).path).name
        stems = [*(number for _, number, _ in own), Path(address).stem, Path(quoted).stem]
        file = next((files[stem] for stem in stems if stem in files), None)
        if file and taken.setdefault(file, url) != url:
            raise DatasetError(
                f"{file} fits two images, {taken[file]} and {url}: expected one file for each. Name them by wit_ix, "
                f"such as {own[0][1]}{file.suffix}"
            )
        unchecked.image(url, ImageRef(key=url, file=file) if file else None, where=str(path))
        for text, _, where in own:
            unchecked.caption(text, url, where=where)
    return unchecked


def _by_stem(folder: Path) -> dict[str, Path]:
    kinds = image_endings()
    files = (path for path in sorted(folder.iterdir()) if ending(path.name) in kinds)
    return {path.stem: path for path in files if path.stat().st_size}
