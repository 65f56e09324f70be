"""Whether JPEGs may be decoded smaller than they are: only where the encoder cannot tell the difference."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.core.encoder_protocol import ImageEncoder, Prepared
from llm2clip.indexer.records.record import Record

PARITY = 0.999
"""Cosine that the worst of the tried images must keep to its vector from the whole image."""
PROBES = 16
"""Images that are tried."""
ENOUGH = 512
"""Fewer images than this are decoded whole without a trial, which would cost more than it can save."""
_AMONG = 4096
_MARGINS = (1, 2)
_FIRST = 4
_FASTER = 0.85


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How the images of an index are decoded; kept in its manifest."""

    margin: int = 0
    """0: whole. Else JPEGs are decoded at 1/2, 1/4 or 1/8 where their shorter side keeps so many times the pixels that
    the encoder takes."""
    cosine: float = 1.0
    """The smallest cosine between the vectors of both ways among the images that were tried."""
    probes: int = 0
    """How many images were tried; 0: it was not."""

    def to_json(self) -> dict[str, int | float]:
        """Field by field."""
        return asdict(self)


def choose_decoding(records: Iterable[Record], *, encoder: ImageEncoder, parity: float = PARITY) -> Decoding:
    """Try some of the images both ways, the fastest first, and take the first that keeps all their vectors.

    Args:
        records: the images to come; the first few thousand are drawn from.
        encoder: the encoder.
        parity: cosine that every vector must keep.
    """
    drawn = _drawn(records)
    contents = [content for record in drawn if (content := _read(record)) is not None]
    first, _ = _prepared(contents[:_FIRST], encoder, margin=0)
    if not _different(first, _prepared(contents[:_FIRST], encoder, margin=_MARGINS[0])[0]):
        return Decoding(probes=len(first))  # small images, or no JPEGs: known at little cost
    whole, seconds = _prepared(contents, encoder, margin=0)
    tried = Decoding(probes=len(whole))
    for margin in _MARGINS:
        smaller, took = _prepared([content for content, _ in whole], encoder, margin=margin)
        pairs = _different(whole, smaller)
        if not pairs or took > _FASTER * seconds:
            break  # nothing to gain, and with a larger margin still less
        reference = encoder.encode_prepared(np.stack([one for one, _ in pairs]))
        vectors = encoder.encode_prepared(np.stack([other for _, other in pairs]))
        cosine = float(np.einsum("nd,nd->n", reference.astype(np.float64), vectors).min())
        tried = Decoding(probes=len(whole), cosine=round(min(cosine, 1.0), 6))
        if cosine >= parity:
            return Decoding(margin=margin, cosine=tried.cosine, probes=tried.probes)
    return tried


_Images = list[tuple[bytes, Prepared]]


def _different(whole: _Images, smaller: _Images) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Pixels of the images that were indeed decoded smaller, both ways."""
    both = ((one.pixels, other.pixels) for (_, one), (_, other) in zip(whole, smaller, strict=True))
    return [(one, other) for one, other in both if not np.array_equal(one, other)]


def some_pixels(records: Iterable[Record], *, encoder: ImageEncoder) -> NDArray[np.uint8]:
    """A few of the images, decoded whole. Shape: (up to ``PROBES``, size, size, 3), uint8."""
    contents = [content for record in _drawn(records) if (content := _read(record)) is not None]
    pixels = [image.pixels for _, image in _prepared(contents, encoder, margin=0)[0]]
    return np.stack(pixels) if pixels else np.zeros((0, 0, 0, 3), np.uint8)


def _drawn(records: Iterable[Record]) -> list[Record]:
    """A few of the records, spread over the first thousands; the same few every time."""
    able = [record for record in islice(records, _AMONG) if record.problem is None]
    if len(able) <= PROBES:
        return able
    return [able[number] for number in sorted(random.Random(0).sample(range(len(able)), PROBES))]


def _read(record: Record) -> bytes | None:
    try:
        content = record.read()
    except (OSError, ValueError):
        return None
    return content or None


def _prepared(contents: list[bytes], encoder: ImageEncoder, *, margin: int) -> tuple[_Images, float]:
    """Images with their pixels, without those that cannot be decoded, and how many seconds it took."""
    found: _Images = []
    began = time.thread_time()
    for content in contents:
        try:
            found.append((content, encoder.prepare(content, margin=margin)))
        except (OSError, ValueError):
            continue
    return found, time.thread_time() - began
