"""What a search needs of an index, whether it lies on this machine or in another engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llm2clip.indexer.core.address import Address
    from llm2clip.indexer.core.encoder_protocol import EncoderIdentity
    from llm2clip.indexer.core.results import Facets, Hit


class Described(Protocol):
    """What an index says of itself."""

    @property
    def index_id(self) -> str:
        """The same for all generations of an index, and for what was exported of it."""

    @property
    def generation(self) -> int:
        """Number of the last change."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def encoder(self) -> Mapping[str, Any]:
        """Identity of the encoder."""

    @property
    def encoder_source(self) -> str:
        """Name or folder of the encoder."""

    @property
    def sources(self) -> Sequence[Mapping[str, str]]:
        """The corpora."""


class SearchableIndex(Protocol):
    """An open index: ``Index`` on this machine, or ``RemoteIndex`` in another engine. Safe to use from several threads.

    Filters are those of docs/filters.md; a filter that is not valid, or that the engine cannot evaluate, raises
    ``WhereError``. ``len`` is the number of images that can be found.
    """

    @property
    def path(self) -> Path | Address:
        """Where it is."""

    @property
    def manifest(self) -> Described:
        """What it says of itself."""

    def __len__(self) -> int: ...

    def search(
        self, vectors: NDArray[np.float32], *, k: int = 10, where: str | None = None
    ) -> list[list[Hit]]:
        """The images with the largest inner products with each query, best first, equal scores by id.

        Shape: (n, dim), float32, unit rows.
        """

    def count(self, where: str | None = None) -> int:
        """How many images pass a filter."""

    def passing(self, ids: Iterable[int], *, where: str | None) -> list[int]:
        """Those of some ids that pass a filter, in their order."""

    def hit(self, id: int) -> Hit | None:
        """An image as a search for itself gives it, with rank 1 and score 1; None if there is none of that id."""

    def take(self, ids: Sequence[int]) -> NDArray[np.float16]:
        """The stored vectors of images that were found. Shape: (len(ids), dim), float16."""

    def hashes(self, ids: Sequence[int]) -> dict[int, bytes]:
        """Hashes of the contents of images that were found, by id."""

    def like_key(self, pattern: str, *, limit: int) -> list[tuple[int, str]]:
        """Id and key of at most so many images whose key matches a LIKE pattern, in which a backslash escapes."""

    def texts(self) -> Iterator[list[tuple[int, str, str | None, str | None]]]:
        """Id, key, caption and metadata (JSON) of all images by id, in lists."""

    def facets(self, *, where: str | None = None) -> Facets:
        """How many images of each year, folder and type pass a filter."""

    def newest(
        self, *, limit: int, where: str | None = None, after: int | None = None
    ) -> tuple[list[Hit], int]:
        """At most ``limit`` images that pass a filter, the newest first or after that id; and how many pass it."""

    def metadata_names(self) -> list[str]:
        """Names of the metadata, as written in filters: ``meta.author``, ..."""

    def explain(self, *, where: str | None = None) -> list[str]:
        """How a query is answered and why, a sentence per step."""

    def errors(self, *, limit: int = -1) -> Sequence[Any]:
        """Images that could not be read; at most ``limit``, all if negative."""

    def read_image(self, hit_id: int) -> bytes:
        """The encoded image of a hit, as it is in the corpus now; ``IndexerError`` if it changed."""

    def require_encoder(self, encoder: EncoderIdentity) -> None:
        """Refuse an encoder other than the one the index was built with."""

    def changed(self) -> bool:
        """Whether there is a newer generation than the one that is open."""

    def close(self) -> None:
        """Close it; it cannot be used afterwards."""
