"""What is written to an engine, and what each engine provides: ``Table``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.core.address import Address
from llm2clip.indexer.core.errors import IndexerError

EXACT_ROWS = 10_000
"""A table of at most so many rows has no ANN index."""
FORMAT = 1
"""Version of ``Description`` and ``Row``."""


class EngineError(IndexerError):
    """An engine cannot be reached, refused a request, or holds something else than expected."""


class EngineLostError(EngineError):
    """The connection failed or was lost; the same request may succeed later."""


class Row(NamedTuple):
    """An image as it is written to an engine. Text of the fields of filters is in Unicode normal form C."""

    id: int
    """Number of the image in the index."""
    digest: int
    """Hash of everything else, 64 bits signed: rows of equal digests need not be sent again."""
    key: str
    path: str
    time: int | None
    """Nanoseconds since 1970."""
    size: int | None
    width: int
    height: int
    pixels: int
    caption: str | None
    hash: str
    copies: int
    time_source: str | None
    key_folded: str
    """Case-folded, for LIKE; likewise the others."""
    path_folded: str
    caption_folded: str | None
    metadata: str | None
    """JSON object without null; None: there is none."""
    metadata_folded: str | None
    """With its texts case-folded."""
    item: str
    """JSON list: what a hit shows and how its image is read again, as the index has it."""
    vector: NDArray[np.float16]
    """Shape: (dim,)."""


COLUMNS = Row._fields
OPTIONAL = frozenset(
    ["time", "size", "caption", "time_source", "caption_folded", "metadata", "metadata_folded"]
)
"""Columns that may be None."""
NUMBERS = frozenset(["id", "digest", "time", "size", "width", "height", "pixels", "copies"])
"""Columns of 64-bit integers."""
JSON = frozenset(["metadata", "metadata_folded"])
"""Columns of JSON."""


class Found(NamedTuple):
    """An image as an engine returns it."""

    id: int
    item: str
    vector: NDArray[np.float16]


@dataclass(frozen=True, kw_only=True)
class Description:
    """What an exported index says of itself; stored beside it. It fulfils ``Described``."""

    index_id: str
    generation: int
    dim: int
    items: int
    rows: int
    """One more than the largest id."""
    encoder: Mapping[str, Any]
    encoder_source: str
    sources: Sequence[Mapping[str, str]]
    kind: str = "exact"
    """Type of the ANN index: ``exact``, ``hnsw``, or one of the engine's names."""
    parameters: Mapping[str, int] = field(default_factory=dict)
    """Parameters of its construction."""
    effort: int = 0
    """How much of it a search visits: ef_search or nprobe; 0 for an exact search."""
    recall: float = 1.0
    """Recall@10 that was measured with this effort."""
    format: int = FORMAT

    def to_json(self) -> str:
        """As ``from_json`` reads it."""
        return json.dumps({"llm2clip": asdict(self)})

    @classmethod
    def from_json(cls, text: str | None, *, address: Address) -> Description:
        """Read a description.

        Raises:
            EngineError: it is none, or of a later format.
        """
        try:
            told = json.loads(text or "")["llm2clip"]
            if told["format"] != FORMAT:
                raise EngineError(
                    f"{address} was written by another release (format {told['format']}, expected {FORMAT}): export "
                    "the index again"
                )
            return cls(**told)
        except (ValueError, TypeError, KeyError) as error:
            if isinstance(error, EngineError):
                raise
            raise EngineError(f"{address} is not an index that llm2clip-index export wrote") from None


class Table(Protocol):
    """An exported index in an engine, or the draft of one.

    Methods raise ``EngineLostError`` where the engine cannot be reached, ``EngineError`` for what it refuses, and
    ``WhereError`` for filters. Reading is safe from several threads.
    """

    address: Address
    batch: int
    """Rows that are written at once."""

    def description(self) -> Description | None:
        """The description as it is now; None if there is no such table."""

    def nearest(
        self, queries: NDArray[np.float32], *, k: int, where: str | None, effort: int
    ) -> list[list[Found]]:
        """About the ``k`` rows with the largest inner products with each query, in any order.

        Shape: (n, dim), float32, unit rows. ``effort`` as in ``Description``; 0: exactly.
        """

    def fetch(self, ids: Sequence[int]) -> dict[int, Found]:
        """The rows of some ids, as far as they are there."""

    def count(self, where: str | None = None) -> int:
        """How many rows pass a filter."""

    def select(
        self, columns: Sequence[str], *, where: str | None = None, limit: int | None = None
    ) -> Iterator[tuple[Any, ...]]:
        """Columns (not the vector) of the rows that pass a filter, by id unless there is a limit."""

    def draft(self, description: Description) -> Table:
        """The table that a first export writes, which nobody sees: empty, or as an earlier export of this left it."""

    def begin(self) -> None:
        """Begin a change, which ``publish`` makes visible."""

    def upsert(self, rows: Sequence[Row]) -> None:
        """Write rows in place of those of the same id."""

    def delete(self, ids: Sequence[int]) -> None:
        """Delete rows."""

    def build(self, description: Description) -> Description:
        """Build the ANN index that suits the engine, unless it is there; returns kind and parameters, and an effort."""

    def publish(self, description: Description) -> None:
        """Make what was written visible under the address, with this description, at once."""

    def reconnect(self) -> None:
        """Connect again after the connection was lost."""

    def close(self) -> None:
        """Close the connection; a change that was not published is undone or stays a draft."""
