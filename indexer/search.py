"""``Index``: an index folder, opened for searching."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.errors import EncoderMismatchError, IndexDamagedError, IndexerError, IndexNotFoundError
from llm2clip.indexer.faiss_index import FaissIndex
from llm2clip.indexer.hits import Hit
from llm2clip.indexer.items import ErrorRow, ItemsReader, ShownRow
from llm2clip.indexer.manifest import Manifest, read_manifest
from llm2clip.indexer.ranking import exact_scan, settle
from llm2clip.indexer.records import content_hash, read_span, root_of
from llm2clip.indexer.reports import IndexInfo
from llm2clip.indexer.segments import Vectors, map_segment
from llm2clip.indexer.store import describe_unfinished, encoder_mismatch

if TYPE_CHECKING:
    from llm2clip.indexer.seam import EncoderIdentity
    from llm2clip.indexer.verify import VerifyReport

_QUERIES_AT_ONCE = 256


def open_index(path: str | os.PathLike[str]) -> Index:
    """Open the index in a folder. Nothing is read but its manifest until it is needed.

    Raises:
        IndexNotFoundError: there is none, or it was never finished.
        IndexVersionError: another release wrote it, in a format that this one does not know.
        IndexDamagedError: a file is missing or has another size than was committed, or the manifest was altered.
    """
    folder = Path(path).expanduser().absolute()
    while True:
        try:
            manifest = read_manifest(folder)
        except IndexNotFoundError as error:
            raise IndexNotFoundError(describe_unfinished(folder) or str(error)) from error
        try:
            return Index(folder, manifest)
        except IndexDamagedError:
            # A build may have replaced this generation, and deleted its files, since the manifest was read.
            if read_manifest(folder).generation == manifest.generation:
                raise


class Index:
    """An index on disk; made by ``open_index``. Safe to use from several threads.

    ``len(index)`` is the number of pictures that can be found.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.path = folder
        self.manifest = manifest
        for name, record in manifest.files.items():
            _check_size(folder / name, record.bytes)
        # Mapped and opened now, though not read: a build may replace this generation and delete its files.
        mapped = [map_segment(folder / s.file, rows=s.rows, dim=manifest.dim) for s in manifest.segments]
        self.vectors = Vectors(mapped, dim=manifest.dim)
        """The stored vectors by id: (len, dim), float16."""
        self.items = ItemsReader(folder / manifest.items_file, committed=True)
        """The items by id."""
        if self.items.meta.get("index_id") != manifest.index_id:
            self.items.close()
            raise IndexDamagedError(
                f"{self.items.path} belongs to another index. Run the build command again"
            )
        self._root = root_of(manifest.corpus)
        self._prefix = self._root + os.sep

    def __len__(self) -> int:
        return self.manifest.items

    @cached_property
    def _faiss(self) -> FaissIndex:
        path, rows, dim = self.path / self.manifest.faiss_file, len(self.vectors), self.manifest.dim
        try:
            return FaissIndex.read(path, rows=rows, dim=dim)
        except IndexDamagedError:
            if path.exists():
                raise
            return FaissIndex.of(
                self.vectors.blocks(), dim=dim
            )  # a build deleted it since this index was opened

    def search(self, vectors: NDArray[np.float32], *, k: int = 10) -> list[list[Hit]]:
        """Find the pictures whose vectors have the largest inner products with each query.

        The search is exact: the answer is that of a brute force over the stored vectors. The score is the inner
        product summed in float64 and rounded to float32, the same however many queries are asked at once; equal
        scores are ranked by id.

        Args:
            vectors: the queries. Shape: (n, dim), float32, unit rows.
            k: how many pictures to find for each; fewer are found where the index has fewer.

        Returns:
            For each query its hits, best first.

        Raises:
            ValueError: the queries have another shape, are not finite or not of unit length, or k < 1.
            IndexDamagedError: a file of the index turns out to be damaged.
            FaissNotInstalledError: FAISS is not installed.
        """
        queries = self._checked(vectors)
        if k < 1:
            raise IndexerError(f"k must be at least 1, got {k}")
        found: list[list[tuple[int, float]]] = []
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            found += self._nearest(queries[start : start + _QUERIES_AT_ONCE], min(k, len(self)))
        rows = self.items.shown(list({id for hits in found for id, _ in hits}))
        return [self._hits(hits, rows) for hits in found]

    def _checked(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.manifest.dim:
            raise IndexerError(
                f"queries must have the shape (n, {self.manifest.dim}), got {queries.shape}: this index was built "
                f"with encoder '{self.manifest.encoder['name']}'"
            )
        squares = np.einsum("nd,nd->n", queries, queries)
        low, high = (float(squares.min()), float(squares.max())) if len(squares) else (1.0, 1.0)
        if not (low > 0.98 and high < 1.02):  # which is also so where one is not a number
            raise IndexerError(
                f"queries must be finite rows of length 1, got lengths {low**0.5:.4g} to {high**0.5:.4g}: "
                "divide each by its length"
            )
        return queries

    def _nearest(self, queries: NDArray[np.float32], k: int) -> list[list[tuple[int, float]]]:
        """For each query its k best (id, score)."""
        # A few more than asked for: the order among near-equal scores is ours to settle, not FAISS's.
        count = min(len(self), k + 8)
        scores, ids = self._faiss.candidates(queries, count=count)
        settled = settle(self.vectors, queries, ids, scores, k=k)
        for number, hits in enumerate(settled):
            while hits is None:
                count = min(len(self), count * 8)
                query = queries[number : number + 1]
                if count > 8192:
                    hits = exact_scan(self.vectors, query[0], k=k)
                    break
                scores, ids = self._faiss.candidates(query, count=count)
                hits = settle(self.vectors, query, ids, scores, k=k)[0]
            settled[number] = hits
        return [hits for hits in settled if hits is not None]

    def _hits(self, found: Iterable[tuple[int, float]], rows: Mapping[int, ShownRow]) -> list[Hit]:
        hits: list[Hit] = []
        try:
            for rank, (id, score) in enumerate(found, 1):
                _, key, caption, metadata, width, height = rows[id]
                hits.append(
                    Hit(
                        id=id,
                        key=key,
                        score=score,
                        rank=rank,
                        uri=self._prefix + key,
                        caption=caption,
                        metadata=json.loads(metadata) if metadata else {},
                        width=width,
                        height=height,
                    )
                )
        except (KeyError, ValueError) as error:
            raise IndexDamagedError(
                f"{self.items.path} is damaged at item {id} ({error}). Run the build command again"
            ) from error
        return hits

    def read_image(self, hit_id: int) -> bytes:
        """The encoded picture of a hit, as it is in the corpus now: a whole file, or one seek into a tar.

        Raises:
            OSError: the corpus is no longer there.
            IndexerError: there is no such id, or a tar changed since it was indexed.
        """
        row = self.items.get(hit_id)
        if row is None:
            raise IndexerError(f"no picture has the id {hit_id}: ids go from 0 to {len(self) - 1}")
        within = row.path or row.key
        if (
            os.path.isabs(within)
            or ".." in within.replace("\\", "/").split("/")
            or os.path.splitdrive(within)[0]
        ):
            raise IndexDamagedError(f"{self.items.path} names a file outside its corpus: {within!r}")
        file = Path(self._root, within)
        if row.offset is None:
            return file.read_bytes()
        picture = read_span(file, offset=row.offset, size=row.size)
        if content_hash(picture) != row.hash:
            raise IndexerError(f"{file} changed since it was indexed: build the index again")
        return picture

    def info(self) -> IndexInfo:
        """What this index is."""
        manifest = self.manifest
        return IndexInfo(
            path=str(self.path),
            corpus=dict(manifest.corpus),
            encoder=dict(manifest.encoder),
            encoder_source=manifest.encoder_source,
            items=manifest.items,
            bad=manifest.bad,
            dim=manifest.dim,
            bytes=sum(record.bytes for record in manifest.files.values()),
            segments=len(manifest.segments),
            faiss=manifest.faiss_kind,
            generation=manifest.generation,
            created=manifest.created,
            written_by=manifest.written_by,
        )

    def errors(self, *, limit: int = -1) -> list[ErrorRow]:
        """The pictures that could not be read, by key, with reasons; ``limit`` of them, all if negative."""
        return self.items.errors(limit=limit)

    def require_encoder(self, encoder: EncoderIdentity) -> None:
        """Make sure that queries of ``encoder`` can be compared with the stored vectors.

        Raises:
            EncoderMismatchError: the index was built with another one.
        """
        if problem := encoder_mismatch(self.manifest.encoder, encoder.identity()):
            raise EncoderMismatchError(
                f"{self.path} {problem}. Search it with the encoder it was built with, or build it anew: "
                f"llm2clip-index build {quote(self.manifest.corpus['spec'])} --index {quote(str(self.path))} "
                f"--encoder {quote(encoder.name)} --overwrite"
            )

    def verify(self) -> VerifyReport:
        """Check every file, count, id and vector. Reads everything."""
        from llm2clip.indexer.verify import verify_index

        return verify_index(self)

    def close(self) -> None:
        """Close the files; the index is of no use afterwards."""
        self.items.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *exception: Any) -> None:  # noqa: ANN401
        self.close()


def _check_size(path: Path, expected: int) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise IndexDamagedError(
            f"{path} is missing: the index is not whole. Run the build command again"
        ) from error
    if size != expected:
        raise IndexDamagedError(
            f"{path} is damaged: got {size:,} bytes, expected {expected:,}. Run the build command again"
        )
