"""Images of one's own with captions: a folder, a tar, tars; read as the indexer reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm2clip.eval.datasets.protocols import declared
from llm2clip.eval.datasets.retrieval_set import ImageRef, RetrievalSet
from llm2clip.eval.datasets.tar_images import DatasetError, flat_texts
from llm2clip.eval.loaders.sidecars import sidecars
from llm2clip.eval.loaders.unchecked_set import UncheckedSet, some
from llm2clip.eval.results.published_numbers import printed_protocols
from llm2clip.indexer.core.errors import CorpusError
from llm2clip.indexer.corpora.open import open_corpus
from llm2clip.indexer.records.record import Record


def load_data(path: str | Path, *, language: str | None = None, name: str | None = None) -> RetrievalSet:
    """Read a folder of images, a tar or tars, each image with its captions beside it.

    ``<image>.json`` holds ``caption`` (a text or a list of texts), or ``captions`` or ``names`` by language: a
    text, a list of texts, or a list of ``{"captions": [...], "kind": ...}``. ``<image>.txt`` holds one caption.
    Images without a caption stay in the gallery.

    Args:
        path: What ``llm2clip-index build`` accepts.
        language: Take the captions of this language; by default those without one or, if there are none, those of
            the only language there is.
        name: What results call the set; by default the name of the file or folder.

    Raises:
        DatasetError: If it cannot be read whole, no image has a caption, or a declared protocol has this name.
    """
    title = name or Path(path).expanduser().absolute().name.removesuffix(".tar")
    _require_free(title)
    records = _records(path)
    language = language or _only_language(records)
    found = sidecars(records, Path(path).expanduser())
    draft = UncheckedSet()
    draft.empty += sorted(found.blank)
    kinds: Counter[str] = Counter()
    for record in records:
        where = f"{path}, {record.key}"
        draft.image(record.key, _reference(record), where=where)
        for text, kind in _captions(record, language):
            draft.caption(text, record.key, where=where)
            kinds[kind] += 1
    if draft.empty:
        raise DatasetError(
            f"{title}: {len(draft.empty):,} captions are empty, expected words: {some(draft.empty)}. Write them, or "
            "remove their files: images without a caption stay in the gallery"
        )
    if not draft.captions:
        raise DatasetError(_wordless(path, records, language))
    bare = len(records) - len({key for _, keys in draft.captions for key in keys})
    if bare:
        draft.notes.append(f"{bare:,} of {len(records):,} images have no caption and stay in the gallery")
    if found.alone:
        draft.notes.append(
            f"{len(found.alone):,} caption files have no image of their name, which are not asked: "
            f"{some(list(found.alone))}"
        )
    if kinds := Counter({kind: number for kind, number in kinds.items() if kind}):
        draft.notes.append("captions by kind: " + ", ".join(f"{k} {n:,}" for k, n in kinds.most_common()))
    return draft.finish(title, language=language, protocol=None)


def data_languages(path: str | Path) -> dict[str, int]:
    """The languages in which captions are given, each with its number of images, the most frequent first.

    Raises:
        DatasetError: If it cannot be read.
    """
    found: Counter[str] = Counter()
    for record in _records(path):
        found.update(_by_language(record).keys())
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _require_free(name: str) -> None:
    """Refuse what printed numbers are found by: the name of a declared protocol, or of another one of the table."""
    base = name.lower().partition("+")[0].partition(":")[0]
    if declared(base) or base in printed_protocols() or not name or set("+:/") & set(name):
        raise DatasetError(
            f"a set of one's own cannot be called '{name}', expected a name that is no protocol's and has none of "
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
        if trouble := record.problem or record.note:
            raise DatasetError(f"{path}, {record.key}: {trouble}; expected whole images with whole captions")
    return records


def _reference(record: Record) -> ImageRef:
    return ImageRef(
        key=record.key,
        file=record.file,
        offset=record.offset,
        size=record.size if record.offset is not None else None,
    )


def _captions(record: Record, language: str | None) -> list[tuple[object, str]]:
    """Each caption with how it was made, if that is said."""
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


def _wordless(path: str | Path, records: list[Record], language: str | None) -> str:
    languages = Counter(key for record in records for key in _by_language(record))
    there = ", ".join(f"{key} ({number:,} images)" for key, number in languages.most_common()) or "none"
    wanted = (
        f"captions in '{language}'" if language else "captions without a language, or a language to be chosen"
    )
    return f"{path} has {len(records):,} images, expected {wanted}; languages there: {there}"
