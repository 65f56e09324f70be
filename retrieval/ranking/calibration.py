"""How sure a hit is: its score compared with the best scores of captions that have nothing to do with the images.

The score of an image is first centred: its mean score over the null captions (``null_captions.tsv``, in nine
languages) is subtracted, since some images score high with every text. The best centred score of each null caption in
an index is what a query gets that finds nothing. These maxima follow a Gumbel distribution, which is fitted to their
lower half: the upper half may hold captions of things that are there after all. The confidence of a hit is the share of
such maxima below its own centred score. docs/searching.md has the measurements.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from llm2clip.common.files import data_home, write_atomic
from llm2clip.retrieval.query.vector_cache import encoder_digest

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from llm2clip.encoders import Encoder
    from llm2clip.indexer import SearchableIndex

MOST_CALIBRATED = 1_000_000_000
"""Parameters of an encoder up to which scores are calibrated unasked: larger ones take minutes for it."""
_LOW, _MIDDLE = 0.25, 0.5
"""Quantiles of the null captions' best scores that the distribution is fitted to."""
_LEAST_SCALE = 1e-4


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """What the scores of one encoder mean in one index."""

    centre: NDArray[np.float32]
    """Mean vector of the null captions. Shape: (dim,), float32."""
    location: float
    """Of the Gumbel distribution of their best centred scores."""
    scale: float
    """Likewise; above 0."""
    captions: int
    """How many captions it was made from."""

    def confidence(self, centred: NDArray[np.float64]) -> NDArray[np.float64]:
        """Confidences, 0 to 1, of centred scores. Any shape."""
        with np.errstate(over="ignore"):
            found: NDArray[np.float64] = np.exp(-np.exp(-(centred - self.location) / self.scale))
        return found

    def least(self, confidence: float) -> float:
        """The least centred score of a confidence; minus or plus infinity for 0 and 1."""
        if not 0 < confidence < 1:
            return math.copysign(math.inf, confidence - 0.5)
        return self.location - self.scale * math.log(-math.log(confidence))


def calibrate(index: SearchableIndex, captions: NDArray[np.float32]) -> Calibration:
    """Calibrate the scores of an index.

    Args:
        index: The index; not empty.
        captions: Unit vectors of the null captions. Shape: (n, dim), float32.
    """
    centre = captions.mean(axis=0)
    moved = captions - centre
    lengths = np.linalg.norm(moved, axis=1)
    usable = lengths > 1e-6
    moved, lengths = moved[usable] / lengths[usable, None], lengths[usable]
    best = np.array([hits[0].score for hits in index.search(moved, k=1)]) * lengths
    return fitted(best, captions)


def fitted(best: NDArray[np.floating[Any]], captions: NDArray[np.float32]) -> Calibration:
    """The calibration of an index in which the captions have these best centred scores. Shapes: (m,), (n, dim)."""
    low, middle = np.quantile(best, [_LOW, _MIDDLE]) if len(best) else (0.0, 0.0)
    # The quantile function of the standard Gumbel distribution is -ln(-ln p).
    at_low, at_middle = (-math.log(-math.log(p)) for p in (_LOW, _MIDDLE))
    scale = max(float(middle - low) / (at_middle - at_low), _LEAST_SCALE)
    location = float(middle) - scale * at_middle
    return Calibration(centre=captions.mean(axis=0), location=location, scale=scale, captions=len(captions))


def calibration_of(
    index: SearchableIndex,
    encoder: Encoder,
    *,
    compute: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Calibration | None:
    """The calibration of an index, from the cache in the data folder if it is there.

    Args:
        index: The index.
        encoder: The one it was built with.
        compute: Whether to encode the captions if that was not done before.
        say: Told, in a sentence, when that begins.

    Returns:
        None: the index is empty, or ``compute`` is false and the captions' vectors are not in the cache.
    """
    if not len(index):
        return None
    digest = _digest(encoder)
    captions = _read_vectors(_place(f"captions-{digest}.npy"), dim=encoder.info.dim)
    if captions is None:
        if not compute:
            return None
        say(f"encoding {len(null_captions())} captions, once for this encoder, to tell how sure its hits are")
        captions = encoder.encode_texts(null_captions())
        _write_vectors(_place(f"captions-{digest}.npy"), captions)
    name = hashlib.blake2b(index.manifest.index_id.encode(), digest_size=8).hexdigest()
    place = _place(f"{name}-{digest}.json")
    generation = index.manifest.generation
    known = _read_fit(place, generation=generation)
    if known is None:
        fresh = calibrate(index, captions)
        known = fresh.location, fresh.scale
        _write(place, json.dumps({"generation": generation, "location": known[0], "scale": known[1]}))
    return Calibration(
        centre=captions.mean(axis=0), location=known[0], scale=known[1], captions=len(captions)
    )


@cache
def null_captions() -> tuple[str, ...]:
    """Captions of things that few collections of images have, in nine languages."""
    table = files(__package__).joinpath("null_captions.tsv").read_text("utf-8")
    return tuple(caption for line in table.splitlines()[1:] for caption in line.split("\t"))


def _digest(encoder: Encoder) -> str:
    """Hash of what the captions' vectors depend on."""
    return encoder_digest(encoder, *null_captions()).hex()[:16]


def _place(name: str) -> Path | None:
    """A file of the cache; None if this user has no data folder."""
    try:
        return data_home() / "calibration" / name
    except OSError:
        return None


def _write(place: Path | None, content: str | bytes) -> None:
    """Write to the cache if it can be written."""
    if place is not None:
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(place, content)


def _write_vectors(place: Path | None, vectors: NDArray[np.float32]) -> None:
    buffer = BytesIO()
    np.save(buffer, vectors)
    _write(place, buffer.getvalue())


def _read_vectors(place: Path | None, *, dim: int) -> NDArray[np.float32] | None:
    """The vectors of the captions; None if they are not there or damaged. Shape: (n, dim), float32."""
    if place is None:
        return None
    try:
        vectors = np.load(place, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    whole = vectors.shape == (len(null_captions()), dim) and vectors.dtype == np.float32
    return vectors if whole and np.isfinite(vectors).all() else None


def _read_fit(place: Path | None, *, generation: int) -> tuple[float, float] | None:
    """Location and scale; None if they are not there, damaged or of another generation."""
    if place is None:
        return None
    try:
        told = json.loads(place.read_text("utf-8"))
        if told["generation"] != generation:
            return None
        location, scale = float(told["location"]), float(told["scale"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (location, scale) if math.isfinite(location) and 0 < scale < math.inf else None
