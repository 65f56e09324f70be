"""The user's own images with captions: a folder or tars, read as the indexer reads them."""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm2clip.common.files import counted
from llm2clip.eval.datasets.protocols import declared
from llm2clip.eval.datasets.retrieval_set import ImageRef, RetrievalSet, UncheckedSet, some
from llm2clip.eval.datasets.tar_images import DatasetError, flat_texts
from llm2clip.indexer.core.errors import CorpusError
from llm2clip.indexer.corpora.open import open_corpus
from llm2clip.indexer.records.record import Record

PUBLISHED_ONLY = frozenset({"coco-5k-mbeir", "coco-5k-mixed", "dci-full7805-mixed"})
"""Protocols of the published table that are not declared; held to it by a test."""
_SIDECARS = (".txt", ".json")


def load_data(path: str | Path, *, language: str | None = None, name: str | None = None) -> RetrievalSet:
    """Read a folder of images, a tar, zip, table or list, each image with its captions beside it.

    ``<image>.json`` holds ``caption`` (a text or a list of texts), or ``captions`` or ``names`` by language: a
    text, a list of texts, or a list of ``{"captions": [...], "kind": ...}``. ``<image>.txt`` holds a caption a line.
    Images without a caption stay in the gallery.

    Args:
        path: What ``llm2clip-index build`` accepts.
        language: Take the captions of this language; by default those without one or, if there are none, those of
            the only language there is.
        name: What results call the set; by default the name of the file or folder.

    Raises:
        DatasetError: It cannot be read whole, no image has a caption, or a declared protocol has this name.
    """
    title = name or Path(path).expanduser().absolute().name
    for kind in (".tar", ".zip", ".parquet", ".arrow"):
        title = title.removesuffix(kind)
    _require_free(title)
    records = _records(path)
    language = language or _only_language(records)
    blank, orphans = _check_sidecars(records, Path(path).expanduser())
    found = UncheckedSet(empty=sorted(blank))
    kinds: Counter[str] = Counter()
    for record in records:
        where = f"{path}, {record.key}"
        size = record.size if record.offset is not None else None
        ref = ImageRef(key=record.key, file=record.file, offset=record.offset, size=size, fetch=record.fetch)
        found.image(record.key, ref, where=where)
        for text, kind in _captions(record, language):
            found.caption(text, record.key, where=where)
            kinds[kind] += 1
    if found.empty:
        raise DatasetError(
            f"{title}: {counted(len(found.empty), 'caption')} without words: {some(found.empty)}. Write them, or "
            "remove their files: images without a caption stay in the gallery"
        )
    if not found.captions:
        raise DatasetError(_without_captions(path, records, language))
    if bare := len(records) - len({key for _, keys in found.captions for key in keys}):
        found.notes.append(
            f"{bare:,} of {counted(len(records), 'image')} without a caption, kept in the gallery"
        )
    if orphans:
        found.notes.append(
            f"{counted(len(orphans), 'caption file')} without an image of that name, not used: {some(orphans)}"
        )
    if named := [(kind, number) for kind, number in kinds.most_common() if kind]:
        found.notes.append("captions by kind: " + ", ".join(f"{kind} {number:,}" for kind, number in named))
    return found.finish(title, language=language, protocol=None)


def data_languages(path: str | Path) -> dict[str, int]:
    """The languages of captions, each with its number of images, the most frequent first.

    Raises:
        DatasetError: It cannot be read.
    """
    found = Counter(language for record in _records(path) for language in _by_language(record))
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _require_free(name: str) -> None:
    """Refuse the name of a declared protocol or of another one of the published table."""
    base = name.lower().partition("+")[0].partition(":")[0]
    if declared(base) or base in PUBLISHED_ONLY or not name or set("+:/") & set(name):
        raise DatasetError(
            f"your own data set cannot be called '{name}', expected a name that is no protocol's and has none of "
            "+ : /. Choose another: NAME=PATH"
        )


def _records(path: str | Path) -> list[Record]:
    try:
        corpus = open_corpus(path)
        records = list(corpus.records())
        if not records:
            raise DatasetError(f"{path}: {corpus.explain_empty()}")
    except CorpusError as error:
        raise DatasetError(str(error)) from error
    for record in records:
        # A file time or a number in the metadata that no index can hold is noted too, and does not matter here.
        left_out = record.note if record.note and "left out" in record.note else None
        if trouble := record.problem or left_out:
            raise DatasetError(f"{path}, {record.key}: {trouble}; expected whole images with whole captions")
    return records


def _captions(record: Record, language: str | None) -> list[tuple[object, str]]:
    """Each caption with its kind, if that is given."""
    if language is not None:
        return flat_texts(_by_language(record).get(language, ()))
    metadata = record.metadata or {}
    for name in ("caption", "text", "captions"):
        if isinstance(metadata.get(name), list):
            return flat_texts(metadata[name])
    for name in ("caption", "text"):
        if record.caption is None and isinstance(metadata.get(name), str):
            return [(metadata[name], "")]  # blank, or it were the record's caption
    return [(record.caption, "")] if record.caption else []


def _only_language(records: list[Record]) -> str | None:
    if any(_captions(record, None) for record in records):
        return None
    languages = {language for record in records for language in _by_language(record)}
    return languages.pop() if len(languages) == 1 else None


def _by_language(record: Record) -> Mapping[str, Any]:
    metadata = record.metadata or {}
    for name in ("captions", "names"):
        if isinstance(metadata.get(name), Mapping):
            return {key: value for key, value in metadata[name].items() if value}
    return {}


def _without_captions(path: str | Path, records: list[Record], language: str | None) -> str:
    if not any(record.caption or _by_language(record) for record in records):
        return f"{path} has {counted(len(records), 'image')} and no captions: put NAME.txt beside NAME.jpg"
    languages = Counter(key for record in records for key in _by_language(record))
    there = (
        ", ".join(f"{key} ({counted(number, 'image')})" for key, number in languages.most_common()) or "none"
    )
    wanted = (
        f"captions in '{language}'" if language else "captions without a language, or a language to be chosen"
    )
    return f"{path} has {counted(len(records), 'image')}, expected {wanted}; languages there: {there}"


def _check_sidecars(records: Sequence[Record], root: Path) -> tuple[set[str], list[str]]:
    """(keys of images whose ``.txt`` holds no word, ``.txt`` and ``.json`` files without an image of their name)."""
    blank: set[str] = set()
    orphans: list[str] = []
    for file, called, owners in _sidecars(records, root):
        if owners is None:
            orphans.append(called)
        elif file.suffix == ".txt":
            blank.update(one.key for one in owners if one.caption is None and not one.metadata)
    return blank, orphans


def _sidecars(records: Sequence[Record], root: Path) -> Iterator[tuple[Path, str, list[Record] | None]]:
    """Each caption file below the folder or in the tars, what messages call it, and the images of its name."""
    loose: dict[str, list[Record]] = {}
    tars: dict[Path, dict[int, Record]] = {}
    for record in records:
        if record.offset is None:
            loose.setdefault(str(Path(record.key).with_suffix("")), []).append(record)
        else:
            tars.setdefault(record.file, {})[record.offset] = record
    for file in _files(root) if loose else ():
        if file.suffix.lower() in _SIDECARS:
            yield file, str(file), loose.get(str(file.with_suffix("")))
    for tar, images in tars.items():
        with tarfile.open(tar) as archive:
            members = [one for one in archive if one.isfile()]
        owned: dict[str, list[Record]] = {}
        for one in members:
            if image := images.get(one.offset_data):
                owned.setdefault(_stem(one.name), []).append(image)
        for one in members:
            if Path(one.name).suffix.lower() in _SIDECARS:
                yield Path(one.name), one.name, owned.get(_stem(one.name))


def _files(root: Path) -> Iterator[Path]:
    """Files below a folder, relative to it; hidden ones are left out."""
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from (
            Path(folder, name).relative_to(root) for name in sorted(names) if not name.startswith(".")
        )


def _stem(name: str) -> str:
    """A member's name up to the first dot, as WebDataset groups samples."""
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}"
