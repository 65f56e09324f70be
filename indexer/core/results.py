"""How to build, how far a build has come, what it did, and what an index is: plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llm2clip.indexer.core.errors import IndexerError


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a build has come."""

    stage: Literal["listing", "embedding", "writing"]
    """What it is doing."""
    done: int
    """Images that are done, the bad ones included."""
    total: int
    """Images in the corpus; while listing, those found so far."""
    kept: int = 0
    """Images whose vectors an earlier build had made."""
    bad: int = 0
    """Images that could not be read."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How to build."""

    batch_size: int | None = None
    """Images in one forward pass; None: found by trying, while working."""
    workers: int | None = None
    """Threads that read and decode; None: as many as there are processors, more where they wait for the storage."""
    overwrite: bool = False
    """Build anew, whatever is there; otherwise vectors of unchanged images are kept and the index of another
    corpus or encoder is refused."""
    encoder_source: str | None = None
    """What ``load_encoder`` was given, if that is not the encoder's name."""
    planner: Callable[[Path, Any], Mapping[str, Any]] | None = None
    """Chooses an ANN index for the ``Vectors`` it is given, writes it to the file and returns its plan; None: the exact
    search."""
    replan: bool = False
    """Plan again although there is an ANN index."""
    require: Callable[[int, int], None] | None = None
    """Called with the number of images and the length of their vectors before any is embedded; may refuse."""
    on_progress: Callable[[Progress], None] | None = None
    """Called now and then from the calling thread."""

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise IndexerError(f"the batch size must be at least 1, got {self.batch_size}")
        if self.workers is not None and self.workers < 1:
            raise IndexerError(f"the number of workers must be at least 1, got {self.workers}")


@dataclass(frozen=True, kw_only=True)
class BadImage:
    """An image that could not be read."""

    key: str
    """Its name in the corpus."""
    reason: str
    """Why, in a few words."""


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """What a build did."""

    path: str
    """The index."""
    corpus: str
    """The corpus as it was given."""
    encoder: str
    """Name of the encoder."""
    up_to_date: bool
    """Whether nothing had changed since the last build, so that nothing was done."""
    items: int
    """Images in the index."""
    embedded: int
    """Images that were embedded now."""
    kept: int
    """Images whose vectors an earlier build had made."""
    bad: int
    """Images that could not be read; the index has them in its errors table."""
    bad_images: tuple[BadImage, ...]
    """The first thousand of them, with reasons."""
    notes: tuple[str, ...]
    """What else a person should know."""
    seconds: float
    """How long it took."""
    peak_memory: int | None = None
    """The most memory that the process has held at once, in bytes, weights and mapped files included; None: unknown."""


@dataclass(frozen=True, kw_only=True)
class IndexInfo:
    """What an index is."""

    path: str
    """Its folder."""
    corpus: Mapping[str, str]
    """What was indexed first."""
    sources: tuple[Mapping[str, str], ...]
    """All that was indexed."""
    encoder: Mapping[str, str | int]
    """Identity of the encoder."""
    encoder_source: str
    """What ``load_encoder`` loads the encoder from."""
    items: int
    """Images that can be found."""
    bad: int
    """Images that could not be read."""
    dim: int
    """Length of the vectors."""
    bytes: int
    """Size of all its files."""
    segments: int
    """Number of vector files."""
    rows: int
    """Vectors that are stored, those of tombstones included."""
    tombstones: int
    """Vectors of no image that can be found; ``compact`` drops them."""
    faiss: str
    """Which FAISS is installed here."""
    ann: str
    """Kind of the search structure."""
    tail: int
    """Vectors that came after it was written, which a search scans."""
    generation: int
    """Number of the last commit."""
    created: str
    """When this one was: ISO 8601, UTC."""
    written_by: str
    """Name and version of the software that wrote it."""


@dataclass(frozen=True, kw_only=True)
class ChangeReport:
    """What ``add``, ``update`` or ``remove`` did."""

    path: str
    """The index."""
    changed_anything: bool
    """Whether anything was committed."""
    new: int
    """Images that the index did not have."""
    changed: int
    """Images whose content is another one now."""
    described: int
    """Images of the same content whose time, caption or metadata changed."""
    moved: int
    """Images that were found under another name; counted among the new and the removed too."""
    removed: int
    """Images that were taken away."""
    unchanged: int
    """Images that were looked for and left as they are."""
    embedded: int
    """Images that were run through the encoder."""
    reused: int
    """Images whose vectors were there already."""
    bad: int
    """Images that could not be read, of those that were looked at."""
    bad_images: tuple[BadImage, ...]
    """The first thousand of them, with reasons."""
    items: int
    """Images in the index now."""
    tombstones: int
    """Vectors of no image that can be found; ``compact`` drops them."""
    notes: tuple[str, ...]
    """What else a person should know."""
    seconds: float
    """How long it took."""


@dataclass(frozen=True, kw_only=True)
class CompactReport:
    """What ``compact`` did."""

    path: str
    """The index."""
    items: int
    """Images in the index."""
    dropped: int
    """Vectors that were dropped."""
    segments: int
    """Files of vectors now."""
    bytes_before: int
    """Size of all files before."""
    bytes_after: int
    """Size of all files now."""
    notes: tuple[str, ...]
    """What else a person should know."""
    seconds: float
    """How long it took."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """An image found, with everything the index knows about it."""

    id: int
    """Number of the image in this index; a rebuilt index may number anew."""
    key: str
    """Stable name within the corpus: the path below its root with forward slashes, ``shard.tar#member`` in a tar."""
    score: float
    """Inner product of the query with the stored vector, -1 to 1 (rounding apart), higher is better."""
    rank: int
    """Place in the answer, from 1. Equal scores are ranked by id."""
    uri: str
    """Where the image is: a file path, or the path of a tar, ``#`` and the member."""
    caption: str | None = None
    """The caption that came with the image."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What else came with the image, as read from its JSON."""
    width: int
    """Width as shown (after EXIF rotation), in pixels."""
    height: int
    """Height as shown, in pixels."""
