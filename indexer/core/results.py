"""Options, progress and reports of operations on indexes; hits of a search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from llm2clip.indexer.core.errors import IndexerError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a build or update."""

    stage: Literal["listing", "loading", "embedding", "writing"]
    """``loading``: the encoder."""
    done: int
    """Images that are done, the bad ones included."""
    total: int
    """Images in the corpus; while listing, those found so far."""
    kept: int = 0
    """Images whose vectors were reused."""
    bad: int = 0
    """Images that could not be read."""


class StoredVectors(Protocol):
    """All rows of an index by id, over its mapped segments of consecutive ids. Shapes: (rows, dim), float16."""

    dim: int

    @property
    def segments(self) -> Sequence[NDArray[np.float16]]:
        """The mapped rows, in the order of their ids."""

    def __len__(self) -> int:
        """Number of rows."""

    def take(self, ids: NDArray[np.int64]) -> NDArray[np.float16]:
        """The rows of some ids. Shape: (n,), int64, each below ``len(self)`` -> (n, dim), float16."""

    def blocks(self, rows: int = 16_384, *, start: int = 0) -> Iterator[tuple[int, NDArray[np.float16]]]:
        """All rows from id ``start`` in order, in blocks: (id of the first row, (n, dim) float16)."""


@dataclass(frozen=True, kw_only=True)
class Facet:
    """A value that some images have in common."""

    value: str
    """A year, a folder with its separator, or an ending."""
    count: int
    """How many have it."""
    where: str
    """The filter that they pass."""


@dataclass(frozen=True, kw_only=True)
class Facets:
    """How many images there are of each year, folder and type."""

    years: tuple[Facet, ...]
    """The newest first; images without a time are in none."""
    folders: tuple[Facet, ...]
    """Below the folder that holds all of the images, those with the most images first."""
    types: tuple[Facet, ...]
    """Endings of the files' names, the most frequent first."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How to build."""

    batch_size: int | None = None
    """Images in one forward pass; None: chosen by measurement."""
    workers: int | None = None
    """Threads that read and decode; None: one per processor, more where they wait for the storage."""
    overwrite: bool = False
    """Replace the index that is there; otherwise vectors of unchanged images are kept, and an index of another corpus
    or encoder is refused."""
    encoder_source: str | None = None
    """What ``load_encoder`` was given, if that is not the encoder's name."""
    planner: Callable[[Path, StoredVectors], Mapping[str, Any]] | None = None
    """Chooses an ANN index for some vectors, writes it to the file and returns its plan; None: the exact
    search."""
    replan: bool = False
    """Plan again although there is an ANN index."""
    prune: bool = False
    """Whether an update believes a source that is gone or empty, and removes its images."""
    require: Callable[[int, int], None] | None = None
    """Called with the number of images and the dimension before any is embedded; may raise."""
    on_progress: Callable[[Progress], None] | None = None
    """Called from the calling thread."""

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise IndexerError(f"the batch size must be at least 1, got {self.batch_size}")
        if self.workers is not None and self.workers < 1:
            raise IndexerError(f"the number of workers must be at least 1, got {self.workers}")


@dataclass(frozen=True, kw_only=True)
class BadImage:
    """An image that could not be read."""

    key: str
    reason: str


BadPicture = BadImage
"""Its old name."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an operation did to an index."""

    path: str
    items: int
    """Images in the index now."""
    notes: tuple[str, ...] = ()
    """What else a person should know."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class BuildReport(Report):
    """What a build did."""

    corpus: str
    """The corpus as it was given."""
    encoder: str
    up_to_date: bool
    """Whether nothing had changed, so that nothing was done."""
    embedded: int
    """Images that were embedded now."""
    kept: int
    """Images whose vectors were kept or reused."""
    bad: int
    """Images of the index that could not be read."""
    bad_images: tuple[BadImage, ...]
    """The first thousand of them."""
    bad_pictures = property(attrgetter("bad_images"), doc="Old name of ``bad_images``.")
    new: int = 0
    """Images that the index did not have, moved ones not counted."""
    changed: int = 0
    """Images of other content, caption or time than before."""
    moved: int = 0
    """Images that went from one key to another."""
    removed: int = 0
    """Images that are gone from the corpus, moved ones not counted."""
    unchanged: int = 0
    """Images that the index had as they are."""
    peak_memory: int | None = None
    """Peak resident memory of the process in bytes, weights and mapped files included; None: unknown."""


@dataclass(frozen=True, kw_only=True)
class ChangeReport(Report):
    """What ``add``, ``update`` or ``remove`` did."""

    changed_anything: bool
    """Whether anything was committed."""
    new: int
    """Images that the index did not have."""
    changed: int
    """Images with other content."""
    described: int
    """Images of the same content whose time, caption or metadata changed."""
    moved: int
    """Images that went from one key to another; counted as new and as removed too."""
    removed: int
    unchanged: int
    embedded: int
    """Images that were run through the encoder."""
    reused: int
    """Images whose vectors were reused."""
    bad: int
    """Images that could not be read, of those that were read now."""
    bad_images: tuple[BadImage, ...]
    """The first thousand of them."""
    bad_pictures = property(attrgetter("bad_images"), doc="Old name of ``bad_images``.")
    tombstones: int
    """Vectors of no item; ``compact`` drops them."""
    removed_keys: tuple[str, ...] = ()
    """Of ``remove`` the keys of the removed images, the first thousand."""


@dataclass(frozen=True, kw_only=True)
class CompactReport(Report):
    """What ``compact`` did."""

    dropped: int
    segments: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, kw_only=True)
class IndexInfo:
    """What an index is."""

    path: str
    corpus: Mapping[str, str]
    """The first source."""
    sources: tuple[Mapping[str, str], ...]
    encoder: Mapping[str, str | int]
    """Identity of the encoder."""
    encoder_source: str
    """What ``load_encoder`` loads the encoder from."""
    items: int
    """Images that a search can find."""
    bad: int
    """Images that could not be read."""
    dim: int
    bytes: int
    segments: int
    rows: int
    """Stored vectors, tombstones included."""
    tombstones: int
    """Vectors of no item; ``compact`` drops them."""
    faiss: str
    """Installed FAISS."""
    ann: str
    """Kind of the ANN index."""
    tail: int
    """Vectors that came after the ANN index; a search scans them."""
    generation: int
    """Number of the last commit."""
    created: str
    """Time of the last commit: ISO 8601, UTC."""
    written_by: str
    """Name and version of the software that wrote it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """An image found, with everything the index knows about it."""

    id: int
    """Number of the image in this index; compacting and rebuilding may change it."""
    key: str
    """Stable name within the corpus: the path below its root with forward slashes, ``shard.tar#member`` in a tar."""
    score: float
    """Inner product of the query with the stored vector, -1 to 1 (rounding apart), higher is better."""
    rank: int
    """Place in the answer, from 1. Equal scores are ranked by id."""
    uri: str
    """Where the image is: a file path, or the path of a tar, ``#`` and the member."""
    caption: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    """What else came with the image, as read from its JSON, and what the image file says of camera, place and so on."""
    time: str | None = None
    """When the image was taken, as its camera's clock showed it, with a zone if that is known; else when its file was
    changed, in UTC. ISO 8601."""
    time_source: str | None = None
    """Where ``time`` is from: ``exif``, ``xmp``, ``iptc``, ``png``, ``video`` or ``file``."""
    width: int
    """Width as shown (after EXIF rotation), in pixels."""
    height: int
    """Height as shown, in pixels."""
    index: str | None = None
    """Folder of its index, where several are searched together."""
    confidence: float | None = None
    """How sure it is that the query is not of something else, 0 to 1; set by ``Searcher`` where it is known."""
    duplicates: tuple[Hit, ...] = ()
    """Copies of the same image that ``Searcher`` folded into this hit, best first."""
