"""``reencode_index``: build an index of the same images with another encoder, and compare the two."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.core.encoder_protocol import ImageEncoder, TextEncoder
from llm2clip.indexer.core.errors import IndexConflictError
from llm2clip.indexer.core.index_paths import require_named, uri_of
from llm2clip.indexer.core.results import BuildOptions, Report
from llm2clip.indexer.corpora.locator import read_located
from llm2clip.indexer.lifecycle.build import build_index
from llm2clip.indexer.lifecycle.commit import commit
from llm2clip.indexer.lifecycle.update import fill
from llm2clip.indexer.records.record import Corpus, Record
from llm2clip.indexer.search.index import Index, open_index
from llm2clip.indexer.storage.items_reader import ItemRow, metadata_of
from llm2clip.indexer.storage.transaction import Transaction, open_for_write

DEPTH = 10
"""Hits of each query that are compared."""
QUERIES = 200
"""At most so many queries of each kind."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Agreement of two indexes of the same images."""

    queries: int
    overlap: float
    """Mean share of the ten nearest neighbours that both find."""


@dataclass(frozen=True, kw_only=True)
class ReencodeReport(Report):
    """What ``reencode_index`` did; ``path`` is the new index."""

    old: str
    """The index of the images; it was not changed."""
    encoder: str
    bad: int
    """Images that could not be read now."""
    images: Overlap
    """Agreement when images of the index are the queries, each without itself."""
    captions: Overlap | None
    """Agreement when captions are the queries; None where there are none, or no two encoders to read them."""


def reencode_index(
    old: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    encoder: ImageEncoder,
    options: BuildOptions | None = None,
    texts: tuple[TextEncoder, TextEncoder] | None = None,
) -> ReencodeReport:
    """Embed the images of an index with another encoder, beside it; the same call resumes an interrupted one.

    ``texts`` are the old and the new encoder, if captions shall be queries of the comparison too.
    """
    if Path(old).expanduser().resolve() == Path(path).expanduser().resolve():
        raise IndexConflictError(f"{path} is the source index: choose another folder with --index")
    with open_index(old) as index:
        for source in index.manifest.sources:
            require_named(source, index=index.path)
        first, *others = [_IndexedCorpus(index, number) for number in range(len(index.manifest.sources))]
        built = build_index(first, path, encoder=encoder, options=options)
        seconds = built.seconds
        if others:
            seconds += fill(path, others, encoder=encoder, options=options).seconds
        _exclude(index, Path(path))
        with open_index(path) as new:
            return ReencodeReport(
                old=str(index.path),
                path=str(new.path),
                encoder=encoder.info.name,
                items=len(new),
                bad=new.manifest.bad,
                seconds=seconds,
                images=_by_images(index, new),
                captions=_by_captions(index, new, texts) if texts else None,
            )


class _IndexedCorpus(Corpus):
    """One source of an index, as the index has it."""

    kind = "indexed"

    def __init__(self, index: Index, number: int) -> None:
        self._index, self._number = index, number
        self._source = dict(index.manifest.sources[number])
        super().__init__(self._source["spec"], Path(self._source.get("root", ".")))

    def identity(self) -> dict[str, str]:
        """The source itself: the new index can be updated from it."""
        return self._source

    def _list(self) -> Iterator[Record]:
        """The images that can be found, in order of id."""
        for rows in self._index.items.each():
            for row in rows:
                if row.source == self._number:
                    yield self._record(row)

    def _record(self, row: ItemRow) -> Record:
        place: dict[str, Any] = json.loads(row.locator) if row.locator else {}
        path, offset = place.pop("path", None), place.pop("offset", None)
        if offset is not None:
            place.pop("size", None)
        uri = uri_of(row.key, corpus=self._source)
        return Record(
            key=row.key,
            uri=uri,
            file=Path(uri),
            path=path,
            offset=offset,
            inner=place or None,
            fetch=partial(read_located, row.locator, key=row.key, corpus=self._source, hash=row.hash),
            size=row.size,
            mtime_ns=row.mtime_ns,
            sidecars=row.sidecars,
            caption=row.caption,
            metadata=metadata_of(row.metadata) or None,
        )

    def explain_empty(self) -> str:
        """The index has no image of this source."""
        return f"{self._index.path} holds no image of {self.spec}"


def _exclude(old: Index, path: Path) -> None:
    """Exclude from the new index what was removed by hand from the old one."""
    rows = [row for row in old.items.errors(every=True) if row.stage == "removed"]
    folder = path.expanduser().absolute()
    with open_for_write(folder) as manifest:
        items = open_index(folder)
        with closing(items):
            there = {(row.source, row.key) for row in items.items.errors(every=True)}
        rows = [row for row in rows if (row.source, row.key) not in there]
        if rows:
            with Transaction.begin(folder, manifest) as transaction:
                transaction.add_exclusions(rows)
                commit(transaction, folder)


def _by_images(old: Index, new: Index) -> Overlap:
    """Each index is searched with its own vectors of the same images."""
    ids = {(row.source, row.key): row.id for rows in new.items.each() for row in rows}
    both = [
        (row.id, ids[row.source, row.key])
        for rows in old.items.each()
        for row in rows
        if (row.source, row.key) in ids
    ]
    some = random.Random(0).sample(both, min(QUERIES, len(both)))
    if not some:
        return Overlap(queries=0, overlap=0.0)
    sides = [
        _found(index, _unit(index.vectors.take(np.array(chosen))), without=list(chosen))
        for index, chosen in zip((old, new), zip(*some, strict=True), strict=True)
    ]
    return _overlap(*sides)


def _by_captions(old: Index, new: Index, texts: tuple[TextEncoder, TextEncoder]) -> Overlap | None:
    captions = [row.caption for rows in old.items.each() for row in rows if row.caption]
    if not captions:
        return None
    some = random.Random(0).sample(captions, min(QUERIES, len(captions)))
    sides = [
        _found(index, encoder.encode_texts(some)) for index, encoder in zip((old, new), texts, strict=True)
    ]
    return _overlap(*sides)


def _unit(rows: NDArray[np.float16]) -> NDArray[np.float32]:
    wide = rows.astype(np.float32)
    unit: NDArray[np.float32] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit


def _found(index: Index, queries: NDArray[np.float32], *, without: Sequence[int] = ()) -> list[set[str]]:
    answers = index.search(queries, k=DEPTH + bool(without))
    found: list[set[str]] = []
    for number, hits in enumerate(answers):
        own = without[number] if without else -1
        found.append({hit.uri for hit in [hit for hit in hits if hit.id != own][:DEPTH]})
    return found


def _overlap(one: Sequence[set[str]], other: Sequence[set[str]]) -> Overlap:
    shares = [len(a & b) / max(1, min(DEPTH, max(len(a), len(b)))) for a, b in zip(one, other, strict=True)]
    return Overlap(queries=len(shares), overlap=sum(shares) / len(shares))
