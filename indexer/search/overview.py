"""What the images of an index have in common: years, folders and types, counted; and their order in time."""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.core.errors import IndexerError
from llm2clip.indexer.core.results import Facet, Facets
from llm2clip.indexer.filters.compile import every

_UNKNOWN = np.iinfo(np.int64).min
"""Of a time; NumPy's NaT."""
_MOST = 100
"""Values of a facet, the most frequent ones."""
_ENDING = re.compile(r"\.([a-z0-9]{1,8})$")
_SAME_TYPE = {"jpeg": "jpg", "tiff": "tif"}
_LONGEST = 900
"""Characters of a folder that is a pattern of a filter."""


@dataclass(frozen=True, kw_only=True)
class Overview:
    """Times, folders and types of all images of a generation and of those removed before, by id."""

    times: NDArray[np.int64]
    """Nanoseconds since 1970. Shape: (rows,), int64."""
    folder_of: NDArray[np.int32]
    """Positions in ``folders``. Shape: (rows,), int32."""
    folders: tuple[tuple[str, ...], ...]
    """Names from the outermost, each with its separator: ``("2019/", "trip.tar#")``."""
    type_of: NDArray[np.int32]
    """Positions in ``types``. Shape: (rows,), int32."""
    types: tuple[str, ...]
    """Endings in lower case; empty for an image without one."""

    @classmethod
    def read(cls, connection: sqlite3.Connection, *, rows: int, commit: int) -> Overview:
        """From the items of a generation, over a connection of filters.

        Raises:
            IndexDamagedError: the items cannot be read.
        """
        return cls.of(every(connection, ("key", "path", "time"), commit=commit), rows=rows)

    @classmethod
    def of(cls, items: Iterable[tuple[Any, ...]], *, rows: int) -> Overview:
        """From id, key, path and time of items; of those of one id the last counts."""
        times = np.full(rows, _UNKNOWN, dtype=np.int64)
        folder_of, type_of = np.zeros(rows, dtype=np.int32), np.zeros(rows, dtype=np.int32)
        folders: dict[tuple[str, ...], int] = {(): 0}
        types = {"": 0}
        for id, key, path, time in items:
            if not 0 <= id < rows:
                continue
            times[id] = _UNKNOWN if time is None else time
            folder_of[id] = folders.setdefault(_folder(key, path), len(folders))
            type_of[id] = types.setdefault(_type(key, path), len(types))
        return cls(
            times=times, folder_of=folder_of, folders=tuple(folders), type_of=type_of, types=tuple(types)
        )

    def newest(self, ids: NDArray[np.int64], *, limit: int, after: int | None = None) -> NDArray[np.int64]:
        """Of some ids the newest, in order; those without a time are last.

        Args:
            ids: Shape: (n,), int64.
            limit: how many.
            after: id of the image before the first, which may have been removed since; None: from the beginning.

        Returns:
            Shape: (at most limit,), int64.

        Raises:
            IndexerError: ``after`` is no id.
        """
        times = self.times[ids]
        if after is not None:
            if not 0 <= after < len(self.times):
                raise IndexerError(f"no image has the id {after}")
            time = self.times[after]
            follows = (times < time) | ((times == time) & (ids > after))
            ids, times = ids[follows], times[follows]
        order = np.lexsort((ids, ~times))[:limit]
        return np.asarray(ids[order], dtype=np.int64)

    def facets(self, ids: NDArray[np.int64]) -> Facets:
        """How many of some images there are of each year, folder and type. Shape: (n,), int64."""
        times = self.times[ids]
        years = times[times != _UNKNOWN].view("M8[ns]").astype("M8[Y]").astype(np.int64) + 1970
        found, counts = np.unique(years, return_counts=True)
        return Facets(
            years=tuple(
                Facet(value=f"{year:04}", count=count, where=f"time = '{year:04}'")
                for year, count in zip(found[::-1].tolist(), counts[::-1].tolist(), strict=True)
            ),
            folders=self._folders(ids),
            types=self._types(ids),
        )

    def _folders(self, ids: NDArray[np.int64]) -> tuple[Facet, ...]:
        """The folders below the one that holds all of the images."""
        counts = np.bincount(self.folder_of[ids], minlength=len(self.folders))
        within = {self.folders[at]: int(counts[at]) for at in np.flatnonzero(counts)}
        depth = _shared(within)
        below: Counter[tuple[str, ...]] = Counter()
        for folder, count in within.items():
            if len(folder) > depth:
                below[folder[: depth + 1]] += count
        return tuple(
            Facet(value="".join(folder), count=count, where=f"key GLOB '{_pattern(''.join(folder))}*'")
            for folder, count in below.most_common(_MOST)
            if len("".join(folder)) <= _LONGEST
        )

    def _types(self, ids: NDArray[np.int64]) -> tuple[Facet, ...]:
        counts = Counter(
            dict(zip(self.types, np.bincount(self.type_of[ids], minlength=len(self.types)), strict=True))
        )
        return tuple(
            Facet(value=name, count=int(count), where=_of_type(name))
            for name, count in counts.most_common(_MOST)
            if name and count
        )


def _folder(key: str, path: str) -> tuple[str, ...]:
    """``2019/trip.tar#a/b.jpg`` in ``2019/trip.tar`` -> ``("2019/", "trip.tar#", "a/")``."""
    held = path if path != key and key.startswith(f"{path}#") else ""
    outer = [f"{name}/" for name in (held or key).split("/")]
    if not held:
        return tuple(outer[:-1])
    inner = [f"{name}/" for name in key[len(held) + 1 :].split("/")[:-1]]
    return (*outer[:-1], f"{outer[-1][:-1]}#", *inner)


def _type(key: str, path: str) -> str:
    found = _ENDING.search(key.lower()) or _ENDING.search(path.lower())
    return _SAME_TYPE.get(found[1], found[1]) if found else ""


def _of_type(name: str) -> str:
    endings = [name, *(other for other, same in _SAME_TYPE.items() if same == name)]
    return "(" + " OR ".join(f"key LIKE '%.{end}' OR path LIKE '%.{end}'" for end in endings) + ")"


def _shared(folders: Iterable[tuple[str, ...]]) -> int:
    """How many of the outermost names all folders share."""
    shared = 0
    for names in zip(*folders, strict=False):
        if len(set(names)) > 1:
            break
        shared += 1
    return shared


def _pattern(text: str) -> str:
    """Text as it stands within a pattern of GLOB in a filter."""
    return re.sub(r"[*?\[]", r"[\g<0>]", text).replace("'", "''")
