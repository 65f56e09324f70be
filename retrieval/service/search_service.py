"""What the server does, without HTTP: encode queries in batches, search the newest generation, read images."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final

from llm2clip.encoders.core.errors import ModelError
from llm2clip.retrieval.output.gallery import small_webp
from llm2clip.retrieval.query.expression import ExpressionError, Term, is_plain, query_vector
from llm2clip.retrieval.query.texts import cleaned, text_vectors
from llm2clip.retrieval.ranking.calibration import MOST_CALIBRATED, Calibration, calibration_of
from llm2clip.retrieval.ranking.explain import reading
from llm2clip.retrieval.ranking.options import Page, SearchOptions
from llm2clip.retrieval.ranking.page import Ranking
from llm2clip.retrieval.service.batching import Batcher
from llm2clip.retrieval.service.live_index import LiveIndex
from llm2clip.retrieval.service.settings import ServerSettings
from llm2clip.retrieval.service.telemetry import Telemetry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llm2clip.encoders import Encoder
    from llm2clip.indexer import Hit, SearchableIndex
    from llm2clip.indexer.core.address import Address

_SIDES = (160, 320, 640, 1280)
_THUMBNAILS = 512
"""Thumbnails that are kept in memory."""


class NoSuchItemError(ValueError):
    """There is no image of that id in the index."""


class _Lookup(NamedTuple):
    """A query to be answered: its unit vector, its terms (none for a bare vector), and how to answer it."""

    vector: NDArray[np.float32]
    terms: Sequence[Term]
    options: SearchOptions


@final
@dataclass
class SearchService:
    """One index, its encoder, and queries to them.

    Coroutines are for one event loop; the rest may be called from any thread.
    """

    path: Path | Address
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
        self._lookups: Batcher[_Lookup, Page] = self._batcher("search", self._find, executor=self._scans)
        batchers = self._texts, self._images, self._lookups
        self.telemetry.queue.set_function(lambda: sum(batcher.waiting for batcher in batchers))
        self._cache: OrderedDict[tuple[str, str], NDArray[np.float32]] = OrderedDict()
        self._calibrated: Calibration | None = None
        self._calibrated_for = -1
        # More at once would each take longer, so that a page would see its first image later.
        self._making = threading.Semaphore(os.cpu_count() or 1)
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

    def index(self) -> AbstractContextManager[SearchableIndex]:
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
        return list(text_vectors(texts, self.encoder))

    def _encode_images(self, images: Sequence[bytes]) -> Sequence[NDArray[np.float32]]:
        return list(self.encoder.encode_images(images, batch_size=max(1, len(images))))

    def stored_vector(self, item: int) -> NDArray[np.float32]:
        """The unit vector of an image of the index. Shape: (dim,), float32; ``NoSuchItemError`` if there is none."""
        import numpy as np

        with self.index() as index:
            _require_item(index, item)
            row = index.take([item])[0].astype(np.float32)
        unit: NDArray[np.float32] = row / np.linalg.norm(row)
        return unit

    # --- answers ---------------------------------------------------------------------------------------------------

    async def search(
        self,
        vector: NDArray[np.float32],
        terms: Sequence[Term],
        options: SearchOptions,
        *,
        took: dict[str, float],
    ) -> Page:
        """One page of the images nearest to a unit vector. Shape: (dim,), float32.

        Searches without a filter that arrive together share a scan. Arguments as for ``vector``; a bare vector has no
        terms.

        Raises:
            OverloadedError: Too many queries wait.
            ValueError: An option is invalid.
        """
        lookup = _Lookup(vector, terms, options)
        with self.telemetry.stage("search", took):
            if options.where is None:
                return await self._lookups.submit(lookup)
            (page,) = await asyncio.to_thread(self._find, [lookup])  # a slow filter holds up no other search
            return page

    def _find(self, lookups: Sequence[_Lookup]) -> Sequence[Page]:
        import numpy as np

        with self.index() as index:
            needed = any(lookup.options.min_confidence is not None for lookup in lookups)
            calibration = self._calibration(index, needed=needed)
            rankings = [
                Ranking(
                    indexes=(index,),
                    vector=lookup.vector,
                    text=lookup.terms[0].value if len(lookup.terms) == 1 and is_plain(lookup.terms) else None,
                    read=reading(lookup.terms, self.encoder.info) if lookup.options.explain else (),
                    calibrations=(calibration,) if lookup.terms and is_plain(lookup.terms) else (),
                )
                for lookup in lookups
            ]
            options = [lookup.options for lookup in lookups]
            shared = [place for place, one in enumerate(options) if _shares_a_scan(one)]
            if shared and len(index):
                wanted = max(
                    rankings[place].looked_at(options[place].k + 1, options[place]) for place in shared
                )
                vectors = np.stack([lookups[place].vector for place in shared])
                nearest = index.search(vectors, k=min(wanted, len(index)))
                for place, hits in zip(shared, nearest, strict=True):
                    rankings[place] = replace(rankings[place], known=hits)
            return [ranking.page(one) for ranking, one in zip(rankings, options, strict=True)]

    def _calibration(self, index: SearchableIndex, *, needed: bool) -> Calibration | None:
        """What scores mean; that of an earlier generation, while the encoder's thread makes the next unless needed."""
        generation = index.manifest.generation
        with self._lock:
            known, current = self._calibrated, self._calibrated_for == generation
            if not current and not needed:
                self._calibrated_for = generation
        if current or len(index) == 0:
            return known
        made = self._pool.submit(self.calibrate)
        return made.result() if needed else known

    def calibrate(self) -> Calibration | None:
        """Calibrate the scores of the newest generation, in the thread that calls."""
        compute = self.encoder.info.parameters <= MOST_CALIBRATED
        with self.index() as index:
            made = calibration_of(index, self.encoder, compute=compute)
            with self._lock:
                self._calibrated, self._calibrated_for = made, index.manifest.generation
        return made

    def newest(self, *, limit: int, where: str | None, cursor: str | None) -> Page:
        """One page of the images that pass a filter, the newest first; ``ValueError`` if an argument is invalid."""
        if cursor is not None and not re.fullmatch(r"\d{1,18}", cursor, re.ASCII):
            raise ValueError("the cursor is not one that this server gave; begin again without it")
        after = int(cursor) if cursor else None
        with self.index() as index:
            hits, total = index.newest(limit=limit + 1, where=where, after=after)
            generation = str(index.manifest.generation)
        following = str(hits[limit - 1].id) if len(hits) > limit else None
        return Page(hits=hits[:limit], total=total, cursor=following, generation=generation)

    async def heat(self, item: int, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """Where an image of the index matches a query: cosines of its parts, from the top left.

        Shape: (dim,), float32 -> (rows, columns), float32.

        Raises:
            NoSuchItemError: There is none of that id.
            OSError, ValueError: It can no longer be read, or the encoder cannot tell (``ModelError``).
        """
        data = await asyncio.to_thread(self.image, item)
        loop = asyncio.get_running_loop()
        cells = await loop.run_in_executor(self._pool, self._cells, data)
        found: NDArray[np.float32] = cells @ vector
        return found

    def _cells(self, data: bytes) -> NDArray[np.float32]:
        from llm2clip.encoders.core.dual_encoder import NO_GRID, DualEncoder

        if not isinstance(self.encoder, DualEncoder):
            raise ModelError(NO_GRID)
        with self.telemetry.stage("heat"):
            return self.encoder.image_cells(data)

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
        with self._making, self.telemetry.stage("thumbnail"):
            small = small_webp(self.image(item), side=side)
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


def _require_item(index: SearchableIndex, item: int) -> Hit:
    hit = index.hit(item)
    if hit is None:
        raise NoSuchItemError(f"no image has the id {item}")
    return hit


def _shares_a_scan(options: SearchOptions) -> bool:
    """Whether a page begins with the nearest images of all."""
    return options.where is None and options.min_confidence is None and not options.cursor
