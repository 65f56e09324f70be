"""``Index``: an index opened for searching."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.ann.faiss_flat import wheel
from llm2clip.indexer.ann.index_file import describe_device, read_ann
from llm2clip.indexer.ann.nearest_neighbors import ANN_BATCH, KnnSearcher
from llm2clip.indexer.ann.plan import Plan
from llm2clip.indexer.core.errors import (
    EncoderMismatchError,
    IndexDamagedError,
    IndexerError,
    IndexNotFoundError,
)
from llm2clip.indexer.core.index_paths import require_named
from llm2clip.indexer.core.results import Facets, Hit, IndexInfo
from llm2clip.indexer.corpora.locator import read_located
from llm2clip.indexer.filters.compile import compile_where, fields_of, metadata_names
from llm2clip.indexer.search.checks import check_size, checked_queries, stamp_of
from llm2clip.indexer.search.overview import Overview
from llm2clip.indexer.search.shown import hits_of, passing_line, tombstone_lines
from llm2clip.indexer.storage.index_folder import describe_unfinished
from llm2clip.indexer.storage.items_file import connect, number_in, sqlite
from llm2clip.indexer.storage.items_reader import ErrorRow, ItemsReader, ShownRow
from llm2clip.indexer.storage.manifest import KIND, Manifest, encoder_mismatch, read_manifest
from llm2clip.indexer.storage.vector_segments import Vectors, map_segment

if TYPE_CHECKING:
    from llm2clip.indexer.core.encoder_protocol import EncoderIdentity
    from llm2clip.indexer.search.verify import VerifyReport

_ROWS_AT_ONCE = 65_536
"""Maximum number of hits of one batch of queries."""
_MASKS = 8
"""Number of filters whose result is cached while an index is open."""


def open_index(path: str | os.PathLike[str], *, device: str = "cpu") -> Index:
    """Open the index in a folder. Only its manifest is read at once.

    Args:
        path: the folder.
        device: where it is searched: ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        IndexNotFoundError: there is none, or it is unfinished.
        IndexVersionError: it has a format that this release does not know.
        IndexDamagedError: a file is missing or has the wrong size, or the manifest was altered.
    """
    folder = Path(path).expanduser().absolute()
    while True:
        stamp = stamp_of(folder)
        try:
            manifest = read_manifest(folder)
        except IndexNotFoundError as error:
            raise IndexNotFoundError(describe_unfinished(folder) or str(error)) from error
        try:
            return Index(folder, manifest, device=device, stamp=stamp)
        except IndexDamagedError:
            # A build may have replaced this generation since the manifest was read.
            if read_manifest(folder).generation == manifest.generation:
                raise


class Index:
    """An index as of when it was opened; made by ``open_index``. Safe to use from several threads.

    ``len(index)`` is the number of images that can be found.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, *, device: str = "cpu", stamp: object = None
    ) -> None:
        self.path, self.device, self._stamp = folder, device, stamp
        self.manifest = manifest
        for name, record in manifest.files.items():
            check_size(folder / name, record.bytes)
        check_size(folder / manifest.items_file, manifest.items_bytes, or_more=True)
        # Mapped and opened now, not read: a change may replace this generation and delete its files.
        mapped = [map_segment(folder / s.file, rows=s.rows, dim=manifest.dim) for s in manifest.segments]
        self.vectors = Vectors(mapped, dim=manifest.dim)
        """The stored vectors by id: (rows, dim), float16, including tombstones."""
        self.items, path = ItemsReader.of(folder, manifest), folder / manifest.items_file
        """The items by id."""
        try:
            meta = self.items.meta
            newest = number_in(meta, "generation", path=path)
            if meta.get("index_id") != manifest.index_id or newest < manifest.generation:
                raise IndexDamagedError(f"{path} belongs to another index. Run the build command again")
            self._filter_connection = connect(path, known=True)
        except IndexDamagedError:
            self.items.close()  # or deleted just now: whoever opens the index looks for the next generation
            raise
        self._guarded = 0
        self._filter_lock = threading.Lock()
        """Held while the connection of filters is used."""
        self._masks: dict[str, NDArray[np.bool_]] = {}

    def __len__(self) -> int:
        return self.manifest.items

    @cached_property
    def _there(self) -> NDArray[np.bool_] | None:
        """Mask of ids that are not tombstones; None: all. Shape: (rows,), bool."""
        if not self.manifest.tombstones:
            return None
        there = np.ones(self.manifest.rows, dtype=np.bool_)
        there[self.items.dead(rows=self.manifest.rows)] = False
        return there

    def _filtering(self) -> sqlite3.Connection:
        """The connection of filters, restricted to them."""
        self.items.settle()
        if self._guarded != self.items.opened:
            from llm2clip.indexer.filters.sandbox import guard

            with sqlite(self.items.path):
                if self.items.opened > 1:  # a writer was killed that was writing the file
                    self._filter_connection.close()
                    self._filter_connection = connect(self.items.path)
                guard(self._filter_connection)
            self._guarded = self.items.opened
        return self._filter_connection

    @cached_property
    def _searcher(self) -> KnnSearcher:
        ann, candidates = self.manifest.ann, None
        # An exact scan on the CPU reads the vectors alone.
        if ann is not None and (self.device, ann.plan.get("kind")) != ("cpu", KIND):
            path = self.path / ann.file
            try:
                candidates = read_ann(
                    path, vectors=self.vectors, rows=ann.rows, plan=ann.plan, device=self.device
                )
            except IndexDamagedError:
                if path.exists():
                    raise
                # A change deleted it since this index was opened: scan the vectors.
        return KnnSearcher(self.vectors, candidates=candidates)

    def allowed(self, where: str | None = None) -> NDArray[np.bool_] | None:
        """Mask of ids that a search may find: no tombstones, and only those that pass a filter; None: all.

        Args:
            where: a filter (docs/filters.md).

        Returns:
            Shape: (rows,), bool.

        Raises:
            WhereError: the filter is not valid.
        """
        if where is None:
            return self._there
        with self._filter_lock:
            if (known := self._masks.pop(where, None)) is None:
                compiled = compile_where(where)
                known = compiled.mask(
                    self._filtering(), rows=self.manifest.rows, commit=self.manifest.generation
                )
                known.flags.writeable = False
            self._masks[where] = known  # the most recent ones are at the end
            if len(self._masks) > _MASKS:
                del self._masks[next(iter(self._masks))]
            return known

    def search(
        self, vectors: NDArray[np.float32], *, k: int = 10, where: str | None = None
    ) -> list[list[Hit]]:
        """Find the images whose vectors have the largest inner products with each query.

        Small indexes are searched exactly. The score is the inner product summed in float64 and rounded to float32,
        independent of the batch; equal scores are ranked by id.

        Args:
            vectors: the queries. Shape: (n, dim), float32, unit rows.
            k: hits per query; fewer where fewer images can be found.
            where: a filter (docs/filters.md); None: none.

        Returns:
            For each query its hits, best first.

        Raises:
            ValueError: the queries have the wrong shape, are not finite or not of unit length, or k < 1.
            WhereError: the filter is not valid.
            IndexDamagedError: a file of the index is damaged.
            FaissNotInstalledError: FAISS is not installed.
        """
        queries = checked_queries(vectors, self.manifest)
        if k < 1:
            raise IndexerError(f"k must be at least 1, got {k}")
        searcher, allowed = self._searcher, self.allowed(where)
        found: list[list[tuple[int, float]]] = []
        at_once = max(1, min(ANN_BATCH, _ROWS_AT_ONCE // k))
        for start in range(0, len(queries), at_once):
            found += searcher.search(queries[start : start + at_once], k=k, allowed=allowed)
        rows = self.items.shown(list({id for hits in found for id, _ in hits}))
        return [self._hits(hits, rows) for hits in found]

    def _hits(self, found: Iterable[tuple[int, float]], rows: Mapping[int, ShownRow]) -> list[Hit]:
        damaged = f"{self.items.path} is damaged"
        return hits_of(found, rows, sources=self.manifest.sources, damaged=damaged)

    def count(self, where: str | None = None) -> int:
        """How many images pass a filter; ``WhereError`` if it is not valid."""
        allowed = self.allowed(where)
        return len(self) if allowed is None else int(np.count_nonzero(allowed))

    def passing(self, ids: Iterable[int], *, where: str | None) -> list[int]:
        """Those of some ids that pass a filter, in their order."""
        allowed = self.allowed(where)
        return [id for id in ids if allowed is None or allowed[id]]

    def take(self, ids: Sequence[int]) -> NDArray[np.float16]:
        """The stored vectors of images that were found. Shape: (len(ids), dim), float16."""
        return self.vectors.take(np.array(ids, dtype=np.int64))

    def hashes(self, ids: Sequence[int]) -> dict[int, bytes]:
        """Hashes of the contents of images that were found, by id."""
        return dict(self.items.of_ids("id, hash", ids))

    def like_key(self, pattern: str, *, limit: int) -> list[tuple[int, str]]:
        """Id and key of at most so many images whose key matches a LIKE pattern, in which a backslash escapes."""
        return self.items.visible("id, key", "AND key LIKE ? ESCAPE '\\' LIMIT ?", pattern, limit)

    def texts(self) -> Iterator[list[tuple[int, str, str | None, str | None]]]:
        """Id, key, caption and metadata (JSON) of all images by id, in lists."""
        return self.items.pages("id, key, caption, metadata")

    def fields_of(self, ids: Sequence[int], names: Sequence[str]) -> dict[int, tuple[Any, ...]]:
        """Fields of filters of some images, by id."""
        with self._filter_lock:
            return fields_of(self._filtering(), ids, names, commit=self.manifest.generation)

    def hit(self, id: int) -> Hit | None:
        """An image as a search for itself gives it, with rank 1 and score 1; None if there is none of that id."""
        rows = self.items.shown([id])
        return self._hits([(id, 1.0)], rows)[0] if rows else None

    @cached_property
    def _overview(self) -> Overview:
        with self._filter_lock:
            return Overview.read(self._filtering(), rows=self.manifest.rows, commit=self.manifest.generation)

    def _passing(self, where: str | None) -> NDArray[np.int64]:
        allowed = self.allowed(where)
        return np.arange(self.manifest.rows) if allowed is None else np.flatnonzero(allowed)

    def facets(self, *, where: str | None = None) -> Facets:
        """How many images of each year, folder and type pass a filter; ``WhereError`` if it is not valid."""
        return self._overview.facets(self._passing(where))

    def newest(
        self, *, limit: int, where: str | None = None, after: int | None = None
    ) -> tuple[list[Hit], int]:
        """At most ``limit`` images that pass a filter, by time, as ``hit`` gives them; and how many pass it.

        The newest come first, or those that follow on the image of the id ``after``; those of unknown time come last.
        """
        passing = self._passing(where)
        ids = self._overview.newest(passing, limit=limit, after=after).tolist()
        return self._hits([(id, 1.0) for id in ids], self.items.shown(ids)), len(passing)

    def metadata_names(self) -> list[str]:
        """Names of the metadata, as written in filters: ``meta.author``, ..."""
        with self._filter_lock:
            return metadata_names(self._filtering())

    def explain(self, *, where: str | None = None) -> list[str]:
        """How a query is answered and why, a sentence per step; see also ``explain_search``.

        Raises:
            WhereError: the filter is not valid.
        """
        steps = tombstone_lines(self.manifest)
        steps += [] if where is None else [passing_line(self.count(where), of=len(self))]
        steps += [describe_device(self.device), *self._searcher.explain(allowed=self.allowed(where))]
        ann = self.manifest.ann
        if ann is not None and len(ann.plan) > 1:  # an unplanned exact index has no plan to explain
            steps += Plan.from_json(ann.plan).lines()
        return steps

    def read_image(self, hit_id: int) -> bytes:
        """The encoded image of a hit, as it is in the corpus now.

        Raises:
            OSError: the corpus no longer exists.
            IndexerError: there is no such id, its container changed since it was indexed, or the index comes from
                another machine and was not trusted on this one.
        """
        row = self.items.get(hit_id)
        if row is None:
            raise IndexerError(f"no image has the id {hit_id}: ids go from 0 to {self.manifest.rows - 1}")
        source = self.manifest.sources[row.source]
        require_named(source, index=self.path)
        return read_located(row.locator, key=row.key, corpus=source, hash=row.hash)

    def info(self) -> IndexInfo:
        """Description of this index."""
        manifest = self.manifest
        return IndexInfo(
            path=str(self.path),
            corpus=dict(manifest.corpus),
            sources=tuple(dict(source) for source in manifest.sources),
            encoder=dict(manifest.encoder),
            encoder_source=manifest.encoder_source,
            items=manifest.items,
            bad=manifest.bad,
            dim=manifest.dim,
            bytes=sum(record.bytes for record in manifest.files.values()) + self.items.path.stat().st_size,
            segments=len(manifest.segments),
            rows=manifest.rows,
            tombstones=manifest.tombstones,
            ann=str(manifest.ann.plan.get("kind", "?")) if manifest.ann else "none",
            tail=manifest.rows - (manifest.ann.rows if manifest.ann else 0),
            faiss=wheel(),
            generation=manifest.generation,
            created=manifest.created,
            written_by=manifest.written_by,
        )

    def errors(self, *, limit: int = -1) -> list[ErrorRow]:
        """Images that could not be read, by key, with reasons; at most ``limit``, all if negative."""
        return self.items.errors(limit=limit)

    def require_encoder(self, encoder: EncoderIdentity) -> None:
        """Refuse an encoder whose queries cannot be compared with the stored vectors.

        Raises:
            EncoderMismatchError: the index was built with another encoder.
        """
        if problem := encoder_mismatch(self.manifest.encoder, encoder.identity()):
            raise EncoderMismatchError(
                f"{self.path} {problem}. Search it with the encoder it was built with, or build it again: "
                f"llm2clip-index build {quote(self.manifest.corpus['spec'])} --index {quote(str(self.path))} "
                f"--encoder {quote(encoder.name)} --overwrite"
            )

    def verify(self) -> VerifyReport:
        """Check all files, counts, ids and vectors. Reads everything."""
        from llm2clip.indexer.search.verify import verify_index

        return verify_index(self)

    def changed(self) -> bool:
        """Whether a newer generation was committed since this one was opened."""
        return stamp_of(self.path) != self._stamp

    def close(self) -> None:
        """Close the files; the index cannot be used afterwards."""
        self.items.close()
        with self._filter_lock:
            self._filter_connection.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *exception: Any) -> None:  # noqa: ANN401
        self.close()
