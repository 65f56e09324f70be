"""What the server does, without HTTP: encode queries in batches, search the newest generation, read images."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final

from llm2clip.retrieval.gallery import small_webp
from llm2clip.retrieval.query.expression import ExpressionError, Term, query_vector
from llm2clip.retrieval.query.texts import cleaned
from llm2clip.retrieval.service.batching import Batcher
from llm2clip.retrieval.service.live_index import LiveIndex
from llm2clip.retrieval.service.settings import ServerSettings
from llm2clip.retrieval.service.telemetry import Telemetry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llm2clip.encoders import Encoder
    from llm2clip.indexer import Hit, Index

MOST_HITS = 1_000
"""Most hits of one page."""
MOST_PAGED = 100_000
"""Hits up to which pages can be turned."""
_SIDES = (160, 320, 640, 1280)
_THUMBNAILS = 512
"""Thumbnails that are kept in memory."""


class NoSuchItemError(ValueError):
    """There is no image of that id in the index."""


@final
@dataclass(frozen=True, kw_only=True)
class Page:
    """One page of an answer."""

    hits: Sequence[Hit]
    """Best first, ranks counted over all pages."""
    total: int
    """Images that pass the filter."""
    cursor: str | None
    """Gets the next page; ``None``: this is the last."""
    generation: int
    """Generation of the index that was searched."""


class _Lookup(NamedTuple):
    """A vector to search with. Shape: (dim,), float32."""

    vector: NDArray[np.float32]
    wanted: int
    where: str | None


class _Found(NamedTuple):
    """What a search gave, in which generation, and how many images pass the filter."""

    hits: Sequence[Hit]
    total: int
    generation: int


@final
@dataclass
class SearchService:
    """One index, its encoder, and queries to them.

    Coroutines are for one event loop; the rest may be called from any thread.
    """

    path: Path
    """Folder of the index."""
    encoder: Encoder
    """The encoder that the index was built with."""
    settings: ServerSettings
    telemetry: Telemetry = field(default_factory=Telemetry)
    device: str = "cpu"
    """Where vectors are searched."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._live = LiveIndex(self.path, encoder=self.encoder, device=self.device, telemetry=self.telemetry)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._scans = ThreadPoolExecutor(1, thread_name_prefix="scan")
        self._texts: Batcher[str, NDArray[np.float32]] = self._batcher("text", self._encode_texts)
        self._images: Batcher[bytes, NDArray[np.float32]] = self._batcher("image", self._encode_images)
        self._lookups: Batcher[_Lookup, _Found] = self._batcher("search", self._find, executor=self._scans)
        batchers = self._texts, self._images, self._lookups
        self.telemetry.queue.set_function(lambda: sum(batcher.waiting for batcher in batchers))
        self._cache: OrderedDict[tuple[str, str], NDArray[np.float32]] = OrderedDict()
        self._thumbnails: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()

    def _batcher(
        self,
        kind: str,
        work: Callable[[Sequence[Any]], Sequence[Any]],
        *,
        executor: ThreadPoolExecutor | None = None,
    ) -> Batcher[Any, Any]:
        settings = self.settings
        return Batcher(
            work,
            executor=executor or self._pool,
            max_batch=settings.max_batch,
            max_wait=settings.max_wait,
            max_queue=settings.max_queue,
            on_batch=lambda size: self.telemetry.batches.labels(kind).observe(size),
        )

    def index(self) -> AbstractContextManager[Index]:
        """The newest generation of the index; an older one stays open for as long as a request uses it."""
        return self._live.newest()

    # --- queries ---------------------------------------------------------------------------------------------------

    async def vector(
        self, terms: Sequence[Term], *, images: Mapping[str, bytes], took: dict[str, float]
    ) -> NDArray[np.float32]:
        """The unit vector of a query. Shape: (dim,), float32.

        Args:
            terms: What ``query.parse`` gave.
            images: Encoded images by the names that the terms give them.
            took: Milliseconds of the stages are added to it.

        Raises:
            OverloadedError: Too many queries wait.
            ValueError: A text or an image is invalid.
        """
        import numpy as np

        found: dict[Term, NDArray[np.float32]] = {}
        with self.telemetry.stage("encode", took):
            for term in dict.fromkeys(terms):
                found[term] = await self._term(term, images)
        return query_vector(terms, np.stack([found[term] for term in terms]))

    async def _term(self, term: Term, images: Mapping[str, bytes]) -> NDArray[np.float32]:
        if term.kind == "item":
            return await asyncio.to_thread(self.stored_vector, int(term.value))
        if term.kind == "text":
            return await self.embedded("text", cleaned(term.value))
        if term.value not in images:
            names = ", ".join(sorted(images)) or "none"
            raise ExpressionError(f"no image called {term.value!r} was sent; images of this request: {names}")
        return await self.embedded("image", images[term.value])

    async def embedded(self, kind: str, value: str | bytes) -> NDArray[np.float32]:
        """The unit vector of one text or encoded image, from the cache if it is there. Shape: (dim,), float32."""
        data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        key = kind, hashlib.blake2b(data, digest_size=16).hexdigest()
        if (known := self._cache.get(key)) is not None:
            self._cache.move_to_end(key)
            self.telemetry.cached.inc()
            return known
        self.telemetry.encoded.inc()
        if isinstance(value, str):
            vector = await self._texts.submit(value)
        else:
            vector = await self._images.submit(value)
        self._cache[key] = vector
        if len(self._cache) > self.settings.cached_queries:
            self._cache.popitem(last=False)
        return vector

    def _encode_texts(self, texts: Sequence[str]) -> Sequence[NDArray[np.float32]]:
        return list(self.encoder.encode_texts(texts, batch_size=max(1, len(texts))))

    def _encode_images(self, images: Sequence[bytes]) -> Sequence[NDArray[np.float32]]:
        return list(self.encoder.encode_images(images, batch_size=max(1, len(images))))

    def stored_vector(self, item: int) -> NDArray[np.float32]:
        """The unit vector of an image of the index. Shape: (dim,), float32; ``NoSuchItemError`` if there is none."""
        import numpy as np

        with self.index() as index:
            _require_item(index, item)
            row = index.vectors.take(np.array([item]))[0].astype(np.float32)
        unit: NDArray[np.float32] = row / np.linalg.norm(row)
        return unit

    # --- answers ---------------------------------------------------------------------------------------------------

    async def search(
        self,
        vector: NDArray[np.float32],
        *,
        limit: int,
        where: str | None,
        cursor: str | None,
        min_score: float | None,
        took: dict[str, float],
    ) -> Page:
        """One page of the images nearest to a unit vector. Shape: (dim,), float32.

        Pages are cut by score and id, so that no image is shown twice, also where the index changes between them.
        Searches without a filter that arrive together share a scan. ``took`` as for ``vector``.

        Raises:
            OverloadedError: Too many queries wait.
            ValueError: The filter or the cursor is invalid.
        """
        seen, last = _read_cursor(cursor) if cursor else (0, None)
        lookup = _Lookup(vector, min(seen + limit + 1, MOST_PAGED), where)
        with self.telemetry.stage("search", took):
            if where is None:
                found = await self._lookups.submit(lookup)
            else:  # a slow filter holds up no other search
                (found,) = await asyncio.to_thread(self._find, [lookup])
        hits: Sequence[Hit] = found.hits
        if last is not None:
            hits = [hit for hit in hits if (-hit.score, hit.id) > (-last[0], last[1])]
        if min_score is not None:
            hits = [hit for hit in hits if hit.score >= min_score]
        page, more = hits[:limit], len(hits) > limit
        following = _write_cursor(seen + len(page), page[-1]) if more and page else None
        return Page(hits=page, total=found.total, cursor=following, generation=found.generation)

    def _find(self, lookups: Sequence[_Lookup]) -> Sequence[_Found]:
        """The hits of lookups of one filter, by one scan."""
        import numpy as np

        where, most = lookups[0].where, max(lookup.wanted for lookup in lookups)
        with self.index() as index:
            allowed = index.allowed(where)
            total = len(index) if where is None or allowed is None else int(allowed.sum())
            vectors = np.stack([lookup.vector for lookup in lookups])
            found = index.search(vectors, k=min(most, total), where=where) if total else [[] for _ in lookups]
            generation = index.manifest.generation
        return [
            _Found(hits[: lookup.wanted], total, generation)
            for lookup, hits in zip(lookups, found, strict=True)
        ]

    def newest(self, *, limit: int, where: str | None, cursor: str | None) -> Page:
        """One page of the images that pass a filter, the newest first; ``ValueError`` as for ``search``."""
        seen, last = _read_cursor(cursor) if cursor else (0, None)
        with self.index() as index:
            hits, total = index.newest(limit=limit + 1, where=where, after=last[1] if last else None)
            generation = index.manifest.generation
        page = hits[:limit]
        following = _write_cursor(seen + limit, page[-1]) if len(hits) > limit else None
        return Page(hits=page, total=total, cursor=following, generation=generation)

    def thumbnail(self, item: int, *, side: int) -> bytes:
        """An image as WebP that fits into a square of about ``side`` pixels.

        Raises:
            NoSuchItemError: There is none of that id.
            OSError, ValueError: It can no longer be read.
        """
        side = next((known for known in _SIDES if known >= side), _SIDES[-1])
        with self.index() as index:
            key = index.manifest.generation, item, side
            with self._lock:
                if key in self._thumbnails:
                    self._thumbnails.move_to_end(key)
                    return self._thumbnails[key]
            data = self.image(item)
        with self.telemetry.stage("thumbnail"):
            small = small_webp(data, side=side)
        with self._lock:
            self._thumbnails[key] = small
            if len(self._thumbnails) > _THUMBNAILS:
                self._thumbnails.popitem(last=False)
        return small

    def image(self, item: int) -> bytes:
        """The encoded image of an id, as it is in the corpus now.

        Raises:
            NoSuchItemError: There is none of that id.
            OSError, ValueError: It can no longer be read.
        """
        with self.index() as index:
            _require_item(index, item)
            return index.read_image(item)

    def item(self, item: int) -> Hit:
        """What the index knows about an image; ``NoSuchItemError`` if there is none of that id."""
        with self.index() as index:
            return _require_item(index, item)

    async def close(self) -> None:
        """End the encoder's thread and close the index."""
        await self._texts.close()
        await self._images.close()
        await self._lookups.close()
        for pool in (self._pool, self._scans):
            pool.shutdown(wait=True, cancel_futures=True)
        self._live.close()


def _require_item(index: Index, item: int) -> Hit:
    hit = index.hit(item)
    if hit is None:
        raise NoSuchItemError(f"no image has the id {item}")
    return hit


def _write_cursor(seen: int, last: Hit) -> str:
    return base64.urlsafe_b64encode(f"{seen}:{last.id}:{last.score!r}".encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> tuple[int, tuple[float, int]]:
    try:
        text = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)).decode("ascii")
        seen, item, score = text.split(":")
        found = int(seen), (float(score), int(item))
    except (ValueError, binascii.Error) as error:
        raise ValueError("the cursor is not one that this server gave; begin again without it") from error
    if not 0 < found[0] <= MOST_PAGED:
        raise ValueError(f"pages end after {MOST_PAGED:,} hits; narrow the query with a filter")
    return found
