"""What is shown of an index: hits made of the rows of items, and how many pass a filter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from llm2clip.indexer.core.errors import IndexDamagedError
from llm2clip.indexer.core.index_paths import uri_of
from llm2clip.indexer.core.results import Hit
from llm2clip.indexer.storage.items_reader import ShownRow, shown_metadata
from llm2clip.indexer.storage.manifest import Manifest


def hits_of(
    found: Iterable[tuple[int, float]],
    rows: Mapping[int, ShownRow],
    *,
    sources: Sequence[Mapping[str, str]],
    damaged: str,
) -> list[Hit]:
    """Hits of ids and scores, ranked from 1.

    Raises:
        IndexDamagedError: a row is missing or not readable; the message begins with ``damaged``.
    """
    hits: list[Hit] = []
    try:
        for rank, (id, score) in enumerate(found, 1):
            _, source, key, caption, metadata, width, height, mtime_ns = rows[id]
            own, time, time_source = shown_metadata(metadata, mtime_ns=mtime_ns)
            hits.append(
                Hit(
                    id=id,
                    key=key,
                    score=score,
                    rank=rank,
                    uri=uri_of(key, corpus=sources[source]),
                    caption=caption,
                    metadata=own,
                    time=time,
                    time_source=time_source,
                    width=width,
                    height=height,
                )
            )
    except (LookupError, ValueError) as error:
        raise IndexDamagedError(f"{damaged} at item {id} ({error}). Run the build command again") from error
    return hits


def passing_line(count: int, *, of: int) -> str:
    """The sentence that says how many images pass a filter."""
    return f"{count:,} of {of:,} images pass the filter ({100 * count / of if of else 0:.4g}%)"


def tombstone_lines(manifest: Manifest) -> list[str]:
    """The sentence that says how many vectors are skipped, if any are."""
    if not manifest.tombstones:
        return []
    return [
        f"{manifest.tombstones:,} of {manifest.rows:,} vectors are of images that were removed or changed and "
        "are skipped; llm2clip-index compact removes them"
    ]
