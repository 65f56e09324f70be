"""``RemoteIndex``: an index in another engine, opened for searching."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from shlex import quote
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.ann.faiss_flat import exact_scores
from llm2clip.indexer.core.address import Address
from llm2clip.indexer.core.errors import EncoderMismatchError, IndexerError, IndexNotFoundError
from llm2clip.indexer.core.index_paths import require_named
from llm2clip.indexer.core.results import Facets, Hit
from llm2clip.indexer.corpora.locator import read_located
from llm2clip.indexer.engines.rows import located, shown_row
from llm2clip.indexer.engines.table import Description, EngineLostError, Found, Table
from llm2clip.indexer.filters.compile import WhereError, names_of
from llm2clip.indexer.filters.patterns import folded, like_matcher
from llm2clip.indexer.search.checks import checked_queries
from llm2clip.indexer.search.overview import Overview
from llm2clip.indexer.search.shown import hits_of, passing_line
from llm2clip.indexer.storage.manifest import encoder_mismatch

if TYPE_CHECKING:
    from llm2clip.indexer.core.encoder_protocol import EncoderIdentity
    from llm2clip.indexer.storage.items_reader import ErrorRow

T = TypeVar("T")
WAITS = (0.1, 0.5, 2.0)
"""Seconds before a request is repeated that failed as the engine was away."""
_SAMPLED = 5_000


def retried(table: Table, request: Callable[[], T]) -> T:
    """The result of a request, repeated with back-off where the connection was lost."""
    for wait in WAITS:
        try:
            return request()
        except EngineLostError:
            time.sleep(wait)
            try:
                table.reconnect()
            except EngineLostError:
                continue
    return request()


class RemoteIndex:
    """An exported index as of when it was opened; it fulfils ``SearchableIndex``.

    The engine proposes candidates; their stored vectors come with them and give the scores that the index itself gives.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        try:
            found = retried(table, table.description)
        except BaseException:
            table.close()
            raise
        if found is None:
            table.close()
            raise IndexNotFoundError(
                f"{table.address} does not exist: export an index with  llm2clip-index export --to "
                f"{quote(str(table.address))}"
            )
        self.manifest: Description = found

    @property
    def path(self) -> Address:
        """Where it is."""
        return self._table.address

    def __len__(self) -> int:
        return self.manifest.items

    def search(
        self, vectors: NDArray[np.float32], *, k: int = 10, where: str | None = None
    ) -> list[list[Hit]]:
        """As ``Index.search``."""
        queries = checked_queries(vectors, self.manifest)
        if k < 1:
            raise IndexerError(f"k must be at least 1, got {k}")
        effort = self.manifest.effort
        found = (
            self._ask(lambda: self._table.nearest(queries, k=k, where=where, effort=effort))
            if len(queries)
            else []
        )
        return [self._ranked(rows, query, k=k) for rows, query in zip(found, queries, strict=True)]

    def _ranked(self, found: Sequence[Found], query: NDArray[np.float32], *, k: int) -> list[Hit]:
        if not found:
            return []
        scores = exact_scores(np.stack([row.vector for row in found]), query)
        ids = np.array([row.id for row in found])
        order = np.lexsort((ids, -scores))[:k].tolist()
        return self._hits([found[place] for place in order], scores[order].tolist())

    def _hits(self, found: Sequence[Found], scores: Sequence[float]) -> list[Hit]:
        rows = {row.id: shown_row(row.id, row.item) for row in found}
        scored = zip((row.id for row in found), scores, strict=True)
        return hits_of(scored, rows, sources=self.manifest.sources, damaged=f"{self.path} is damaged")

    def count(self, where: str | None = None) -> int:
        """How many images pass a filter."""
        return len(self) if where is None else self._ask(lambda: self._table.count(where))

    def passing(self, ids: Iterable[int], *, where: str | None) -> list[int]:
        """Those of some ids that pass a filter, in their order."""
        asked = list(ids)
        if where is None or not asked:
            return asked
        passed = {id for (id,) in self._select(("id",), where=where)}
        return [id for id in asked if id in passed]

    def hit(self, id: int) -> Hit | None:
        """An image as a search for itself gives it; None if there is none of that id."""
        found = self._ask(lambda: self._table.fetch([id])) if 0 <= id < self.manifest.rows else {}
        return self._hits([found[id]], [1.0])[0] if id in found else None

    def take(self, ids: Sequence[int]) -> NDArray[np.float16]:
        """The stored vectors of images that were found. Shape: (len(ids), dim), float16."""
        found = self._fetch(ids)
        return np.array([found[id].vector for id in ids], dtype=np.float16).reshape(-1, self.manifest.dim)

    def hashes(self, ids: Sequence[int]) -> dict[int, bytes]:
        """Hashes of the contents of images that were found, by id."""
        return {id: located(row.item)[3] for id, row in self._fetch(ids).items()}

    def _fetch(self, ids: Sequence[int]) -> dict[int, Found]:
        found = self._ask(lambda: self._table.fetch(ids))
        if missing := set(ids) - found.keys():
            raise IndexerError(
                f"{self.path} no longer has the image {min(missing)}: it changed; search again"
            )
        return found

    def like_key(self, pattern: str, *, limit: int) -> list[tuple[int, str]]:
        """Id and key of at most so many images whose key matches a LIKE pattern."""
        where = "key LIKE '{}'".format(pattern.replace("'", "''"))
        try:
            return self._select(("id", "key"), where=where, limit=limit)
        except WhereError:  # the engine has no such LIKE
            matches = like_matcher(folded(pattern))
            return [(id, key) for id, key in self._select(("id", "key")) if matches(folded(key))][:limit]

    def texts(self) -> Iterator[list[tuple[int, str, str | None, str | None]]]:
        """Id, key, caption and metadata (JSON) of all images by id, in lists."""
        yield self._select(("id", "key", "caption", "metadata"))

    @cached_property
    def _overview(self) -> Overview:
        return Overview.of(self._select(("id", "key", "path", "time")), rows=self.manifest.rows)

    def _passing(self, where: str | None) -> NDArray[np.int64]:
        return np.array([id for (id,) in self._select(("id",), where=where)], dtype=np.int64)

    def facets(self, *, where: str | None = None) -> Facets:
        """How many images of each year, folder and type pass a filter."""
        return self._overview.facets(self._passing(where))

    def newest(
        self, *, limit: int, where: str | None = None, after: int | None = None
    ) -> tuple[list[Hit], int]:
        """At most ``limit`` images that pass a filter, the newest first or after that id; and how many pass it."""
        passing = self._passing(where)
        ids = self._overview.newest(passing, limit=limit, after=after).tolist()
        found = self._fetch(ids)
        return self._hits([found[id] for id in ids], [1.0] * len(ids)), len(passing)

    def metadata_names(self) -> list[str]:
        """Names of the metadata, as written in filters."""
        some = self._select(("metadata",), limit=_SAMPLED)
        return names_of({name for (told,) in some if told for name in json.loads(told)})

    def explain(self, *, where: str | None = None) -> list[str]:
        """How a query is answered and why, a sentence per step."""
        told = self.manifest
        made = ", ".join(f"{name} {value}" for name, value in told.parameters.items())
        how = (
            "compares the query with every vector"
            if not told.effort
            else f"searches an index of type {told.kind} ({made}) with effort {told.effort}: recall@10 "
            f"{told.recall:.3f} when it was exported"
        )
        steps = [f"{self.path} {how}; scores are computed here from the stored vectors"]
        return steps if where is None else [passing_line(self.count(where), of=len(self)), *steps]

    def errors(self, *, limit: int = -1) -> list[ErrorRow]:
        """Images that could not be read: none, they are not exported."""
        return []

    def read_image(self, hit_id: int) -> bytes:
        """As ``Index.read_image``: from the corpus, if that was named on this machine."""
        found = self._ask(lambda: self._table.fetch([hit_id]))
        if hit_id not in found:
            raise IndexerError(f"no image has the id {hit_id}")
        source, key, locator, hash = located(found[hit_id].item)
        corpus = self.manifest.sources[source]
        require_named(corpus, index=self.path)
        return read_located(locator, key=key, corpus=corpus, hash=hash)

    def require_encoder(self, encoder: EncoderIdentity) -> None:
        """Refuse an encoder other than the one the index was built with."""
        if problem := encoder_mismatch(self.manifest.encoder, encoder.identity()):
            raise EncoderMismatchError(f"{self.path} {problem}. Search it with the encoder it was built with")

    def changed(self) -> bool:
        """Whether another generation was exported since this one was opened."""
        return self._ask(self._table.description) != self.manifest

    def close(self) -> None:
        """Close the connection."""
        self._table.close()

    def _ask(self, request: Callable[[], T]) -> T:
        return retried(self._table, request)

    def _select(
        self, columns: Sequence[str], *, where: str | None = None, limit: int | None = None
    ) -> list[tuple]:  # type: ignore[type-arg]
        return self._ask(lambda: list(self._table.select(columns, where=where, limit=limit)))
