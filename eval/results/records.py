"""The result of one encoder on one data set: the JSON file that ``run`` writes and everything else reads.

docs/evaluation.md lists the fields. Shares lie in [0, 1]; percentages are made where they are printed. Reading is
strict: an unknown or missing field is an error that names it.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llm2clip.common.files import write_atomic

FORMAT = "llm2clip-eval-result"
VERSION = 2

Direction = Literal["t2i", "i2t"]


@dataclass(frozen=True, kw_only=True)
class RecallAt:
    """Share of queries with a right answer among the first k."""

    k: int
    value: float
    """Ties counted against us: the number to report."""
    low: float
    high: float
    expected: float
    """Mean over all orders of equal scores."""
    optimistic: float


@dataclass(frozen=True, kw_only=True)
class Adjusted:
    """Recall after a correction that changes the ranking; never the headline."""

    name: str
    """``dual-softmax`` or ``csls``."""
    transductive: bool
    """Whether it uses the other test queries."""
    recall: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class Hubs:
    """How unevenly the gallery is returned, over the first ten answers."""

    skewness: float
    """Of the number of times each item is returned; 0 is even."""
    never: float
    """Share of the gallery that is never returned."""
    top_share: float
    """Share of all answers that fall on the hundredth of items returned most often."""


@dataclass(frozen=True, kw_only=True)
class DirectionResult:
    """One direction of retrieval."""

    direction: Direction
    """``t2i``: texts are the queries; ``i2t``: images are."""
    queries: int
    gallery: int
    unmatched: int
    """Queries without a right answer, left out."""
    recall: tuple[RecallAt, ...]
    mean_recall: float
    """Mean over those k, of this direction."""
    median_rank: float | None
    """Of the best right answer; none if it is infinite."""
    map_at_r: float | None = None
    """Mean average precision over the first R answers, R being the number of right ones."""
    hubs: Hubs | None = None
    adjusted: tuple[Adjusted, ...] = ()
    ranks: str = ""
    """Rank of each query's best right answer, ties against us, packed; see ``unpack``."""
    clusters: str = ""
    """Image that each query belongs to, packed: what the bootstrap draws."""

    def at(self, k: int) -> RecallAt | None:
        """Recall at this k, if it was measured."""
        return next((one for one in self.recall if one.k == k), None)

    @property
    def tie_gap(self) -> float:
        """The most by which the order of equal scores moves a recall: above 0.001, scores are suspect."""
        return max((one.optimistic - one.value for one in self.recall), default=0.0)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Recall at 1, text to image, of some queries or of shortened ones."""

    label: str
    """Which: a range of tokens (``17-32``), or a number of words (``20 words``)."""
    tokens: float
    queries: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """What the length of a text does."""

    truncated: float
    tokens_per_caption: float
    """Mean, by the encoder's own tokenizer."""
    buckets: tuple[Share, ...] = ()
    prefixes: tuple[Share, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RecallLoss:
    """What an index costs at one k."""

    k: int
    exact: float
    """Recall by an exact scan of the encoder's own vectors."""
    index_recall: float
    """Recall of what the index returned."""
    overlap: float
    """Share of the exact first k that the index returned among its first k."""


@dataclass(frozen=True, kw_only=True)
class IndexRecall:
    """Recall through an index, text to image."""

    index: str
    """What kind: FAISS factory string, vectors, number of images."""
    generation: str
    images: int
    """Images in the index, those of other sets included."""
    at: tuple[RecallLoss, ...]
    milliseconds: float
    """Per query, wall clock, searched in batches."""
    where: str = ""
    """Filter that was searched under; only captions of images that pass it were queries."""


@dataclass(frozen=True, kw_only=True)
class SetRecord:
    """What was measured on."""

    protocol: str
    language: str | None
    complete: bool
    """Whether everything that the protocol declares was there."""
    images: int
    captions: int
    sha256: str
    """Over the content of all images, all captions and what belongs together."""
    rule: str = ""
    files: tuple[tuple[str, str], ...] = ()
    """(path, SHA-256) of the annotation files."""
    notes: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Protocol, and language where there are several."""
        return f"{self.protocol}:{self.language}" if self.language else self.protocol


@dataclass(frozen=True, kw_only=True)
class EncoderRecord:
    """What was measured."""

    label: str
    name: str
    family: str
    repository: str
    """On the Hugging Face hub, if it is a published one."""
    dim: int
    image_size: int
    """Side of its input image, in pixels."""
    max_text_tokens: int
    weights_sha256: str
    settings_sha256: str
    """Of everything else that shapes vectors."""
    preprocessing: str
    parameters: int
    languages: tuple[str, ...]
    licence: str
    dtype: str
    text_dtype: str
    """Dtype in which texts are encoded, or ``int8`` / ``int4`` weights."""
    device: str
    parity: str
    """``native``, or ``reference`` with known mistakes of the original code."""
    key: str
    """Hash of what decides its vectors."""
    published: str = ""
    """Whether it is the published encoder of its name: ``verified`` by the hash of its weights, ``unverified``
    where only sizes could be checked, ``other`` where something differs; empty for other names and in older files."""


@dataclass(frozen=True, kw_only=True)
class CostRecord:
    """What encoding cost in this run; none where vectors came from disk."""

    images_encoded: int
    texts_encoded: int
    images_per_second: float | None
    """From files to vectors; none if fewer than 64 were encoded."""
    texts_per_second: float | None
    query_ms: float | None = None
    """Median milliseconds of a text alone; none unless timed (``run --throughput``)."""
    peak_memory_mb: int
    """Peak memory of the process since the encoder was opened (Linux), else since its start."""
    threads: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """One encoder on one set."""

    set: SetRecord
    encoder: EncoderRecord
    directions: tuple[DirectionResult, ...]
    date: str
    """When, UTC, ISO 8601."""
    code: str
    libraries: tuple[tuple[str, str], ...]
    """(name, version) of what computed."""
    machine: str
    seed: int
    resamples: int
    lengths: Lengths | None = None
    cost: CostRecord | None = None
    overlap: str = ""
    """``trained-on``, ``same-source``, ``none-known`` or empty: whether the encoder saw this set in training."""
    overlap_note: str = ""
    index_recall: tuple[IndexRecall, ...] = ()
    format: Literal["llm2clip-eval-result"] = "llm2clip-eval-result"
    version: int = VERSION

    def direction(self, name: Direction) -> DirectionResult | None:
        """One of the directions, if it was measured."""
        return next((one for one in self.directions if one.direction == name), None)

    @property
    def file_name(self) -> str:
        """Where it belongs: the same encoder on the same set has one name."""
        return f"{_slug(self.set.id)}--{_slug(self.encoder.label)}-{self.encoder.key[:8]}.json"


def write_result(result: Result, folder: Path) -> Path:
    """Write a result under its own name, whole or not at all; return where."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / result.file_name
    write_atomic(path, json.dumps(asdict(result), ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    return path


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-.") or "x"


def pack(values: NDArray[Any]) -> str:
    """Whole numbers as text: int32, little-endian, zlib, base64. Infinite and larger ones become the largest."""
    limited = np.minimum(np.nan_to_num(values, posinf=math.inf), np.iinfo(np.int32).max)
    return base64.b64encode(zlib.compress(limited.astype("<i4").tobytes(), 9)).decode("ascii")


def unpack(text: str) -> NDArray[np.int32]:
    """What ``pack`` was given; ``ValueError`` if it is damaged."""
    try:
        return np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), dtype="<i4").astype(
            np.int32
        )
    except (binascii.Error, zlib.error) as error:
        raise ValueError(
            f"packed numbers cannot be read ({error}): the result is damaged, measure again"
        ) from error
