"""``move_sources``: tell an index that its images were moved or renamed; nothing is read or encoded."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

from llm2clip.indexer.core.errors import CorpusError, IndexerError
from llm2clip.indexer.core.index_paths import known_indexes, named_place, remember
from llm2clip.indexer.core.results import Report
from llm2clip.indexer.lifecycle.commit import commit
from llm2clip.indexer.storage.index_folder import check_files
from llm2clip.indexer.storage.items_reader import ItemsReader
from llm2clip.indexer.storage.manifest import Manifest, read_manifest
from llm2clip.indexer.storage.transaction import Transaction, open_for_write

_PLACES = ("root", "list", "shards")
"""Entries of a source that hold a path."""
_TRIED = 10_000
"""Images that are looked for at the new place."""
_COMPARED = 50
"""Images by which a moved folder is recognised."""


@dataclass(frozen=True, kw_only=True)
class MoveReport(Report):
    """What ``move_sources`` did."""

    sources: tuple[str, ...]
    """The moved sources, at their new place."""
    tried: int
    """Images that were looked for at the new place."""
    found: int
    """How many of them are there."""


def move_sources(
    path: str | os.PathLike[str], old: str | os.PathLike[str], new: str | os.PathLike[str]
) -> MoveReport:
    """Note that the images below ``old`` are below ``new`` now: a folder that was renamed, or a disk mounted elsewhere.

    Args:
        path: folder of the index.
        old: a source of the index, a folder that holds it, or a URL.
        new: where that is now.

    Raises:
        IndexerError: no source of the index lies below ``old``.
        CorpusError: ``new`` does not exist, or holds none of the images.
        IndexConflictError: another process writes.
        IndexWriteError: an I/O error occurred (for example a full disk).
    """
    folder, began = Path(path).expanduser().absolute(), time.perf_counter()
    place, target = _absolute(old), _absolute(new)
    with open_for_write(folder) as found:
        base = check_files(folder, found)
        moved, numbers = _with_moved(base, place, target)
        if not numbers:
            known = ", ".join(str(source.get("root") or source["spec"]) for source in base.sources[:3])
            raise IndexerError(f"no source of {folder} is below {place}: it has images of {known}")
        if "://" not in target and not os.path.exists(target):
            raise CorpusError(f"no such file or folder: {target}; expected the new place of {place}")
        tried, there = _look(folder, moved, numbers)
        if tried and not there:
            raise CorpusError(
                f"none of the {tried:,} images that were looked for is below {target}: expected the folder that "
                f"{place} became. Nothing was changed"
            )
        places = [moved.sources[number] for number in sorted(numbers)]
        remember(places)
        with Transaction.begin(folder, moved) as transaction:
            manifest = commit(transaction, folder)
    return MoveReport(
        path=str(folder),
        items=manifest.items,
        sources=tuple(str(source.get("root")) for source in places),
        tried=tried,
        found=there,
        seconds=time.perf_counter() - began,
    )


def indexes_below(old: str | os.PathLike[str]) -> list[Path]:
    """The known indexes that have a source below ``old``."""
    place, found = _absolute(old), list[Path]()
    for path in known_indexes().values():
        with suppress(IndexerError, OSError):
            if any(_moved(source, place, place) for source in read_manifest(path).sources):
                found.append(path)
    return found


def moved_from(corpus: str | os.PathLike[str]) -> tuple[Path, str] | None:
    """A known index whose folder is gone and whose images are in ``corpus``, and that folder; None if there is none."""
    target = os.path.abspath(os.path.expanduser(corpus))
    for path in known_indexes().values():
        try:
            manifest = read_manifest(path)
            roots = {str(source.get("root", "")) for source in manifest.sources if source["kind"] == "folder"}
            for root in roots:
                if root and not os.path.exists(root):
                    moved, numbers = _with_moved(manifest, root, target)
                    tried, there = _look(path, moved, numbers, most=_COMPARED)
                    if tried and 2 * there > tried:
                        return path, root
        except (IndexerError, OSError):
            continue
    return None


def _absolute(place: str | os.PathLike[str]) -> str:
    spec = os.fspath(place)
    return spec.rstrip("/") if "://" in spec else os.path.abspath(os.path.expanduser(spec))


def _with_moved(manifest: Manifest, old: str, new: str) -> tuple[Manifest, frozenset[int]]:
    """A manifest with the sources below ``old`` at their new place, and their numbers."""
    places = enumerate(_moved(source, old, new) for source in manifest.sources)
    moved = {number: place for number, place in places if place is not None}
    sources = tuple(moved.get(number, dict(was)) for number, was in enumerate(manifest.sources))
    return replace(manifest, sources=sources), frozenset(moved)


def _moved(source: Mapping[str, str], old: str, new: str) -> dict[str, str] | None:
    """The identity of a source at its new place; None if it is not below ``old``."""
    changed = {name: _below(source[name], old, new) for name in _PLACES if name in source}
    if source["kind"] == "sample" or not any(value is not None for value in changed.values()):
        return None
    whole = {**source, **{name: value for name, value in changed.items() if value is not None}}
    return {**whole, "spec": named_place(whole)}


def _below(place: str, old: str, new: str) -> str | None:
    separator = "/" if "://" in old else os.sep
    if place == old:
        return new
    start = old.rstrip(separator) + separator
    return new.rstrip(separator) + separator + place.removeprefix(start) if place.startswith(start) else None


def _look(
    folder: Path, manifest: Manifest, numbers: frozenset[int], *, most: int = _TRIED
) -> tuple[int, int]:
    """How many local images of some sources were looked for, and how many are there with the size they had."""
    tried = there = 0
    for file, size in islice(_files(folder, manifest, numbers), most):
        tried += 1
        try:
            found = os.stat(file).st_size
        except OSError:
            continue
        there += size is None or found == size
    return tried, there


def _files(folder: Path, manifest: Manifest, numbers: frozenset[int]) -> Iterator[tuple[str, int | None]]:
    """The local files of the images of some sources, and the sizes of those that are whole files."""
    items = ItemsReader.of(folder, manifest)
    with closing(items):
        for _, source, key, path, size in chain.from_iterable(items.pages("id, source, key, path, size")):
            root = str(manifest.sources[source].get("root", ""))
            if source in numbers and root and "://" not in root and "://" not in key:
                inner = path is not None or "#" in key
                yield os.path.join(root, path or key.partition("#")[0]), None if inner else size
