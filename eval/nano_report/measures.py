"""The measurements behind the report on nano; ``vectors`` of images have shape (images, dim), float32, unit rows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llm2clip.eval.datasets.tar_images import TarImage
from llm2clip.eval.metrics.blockwise_scores import Embeddings
from llm2clip.eval.metrics.recall import DirectionMetrics, best_rank, direction_metrics
from llm2clip.eval.nano_report.data import FreeQuery, Gallery, Scene, Split
from llm2clip.eval.runner.evaluate import TextEncoder
from llm2clip.eval.runner.throughput import median_seconds, query_times

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder

KS = (1, 5, 10)
CUT_TOKENS = 75
"""Caption tokens that are left when a caption is cut: CLIP reads 77, begin and end included."""
_ROUNDING = 1e-6
_TIMED_IMAGES = 512
_TIMED_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number of the report and what it was measured on."""

    table: str
    """``names``, ``queries``, ``scenes`` or ``cost``."""
    subject: str
    row: str
    metric: str
    value: float
    """Percent for shares; else in ``unit``."""
    unit: str = "%"
    count: int = 0
    """Queries behind the number; 0 where that means nothing."""
    blocks: bool = True
    """False when the transformer blocks of the language model were switched off."""


@dataclass(frozen=True, kw_only=True)
class QueryAnswer:
    """What one free-form query found."""

    id: str
    gallery: str
    rank: int | None
    """Rank of the first accepted hit among those returned, or ``None``."""
    hits: tuple[str, ...]
    blocks: bool = True


def measure_names(
    encoder: TextEncoder, gallery: Gallery, vectors: NDArray[np.float32], *, languages: Sequence[str]
) -> Iterator[Measurement]:
    """R@k of finding every image by its CLDR name, by language and as the row ``mean``."""
    make = partial(Measurement, table="names", subject=gallery.style)
    shares: dict[int, list[float]] = {k: [] for k in KS}
    for language in languages:
        names = gallery.names(language)
        result = _text_to_image(encoder, list(names.values()), vectors, list(names))
        for k, share in _recalls(result):
            shares[k].append(share)
            yield make(row=language, metric=f"R@{k}", value=share, count=result.queries)
    for k in KS:
        yield make(row="mean", metric=f"R@{k}", value=float(np.mean(shares[k])), count=len(languages))


def answer_queries(
    encoder: TextEncoder,
    gallery: Gallery,
    vectors: NDArray[np.float32],
    *,
    queries: Sequence[FreeQuery],
    k: int = 5,
) -> list[QueryAnswer]:
    """Put free-form queries to the gallery and look for an accepted emoji among the first ``k`` answers."""
    asked = encoder.encode_texts([query.text for query in queries]).astype(np.float64)
    best = np.argsort(-asked @ vectors.T, axis=1, kind="stable")[:, :k]
    answers = []
    for query, numbers in zip(queries, best.tolist(), strict=True):
        found = tuple(gallery.emoji[number] for number in numbers)
        rank = next((rank for rank, emoji in enumerate(found, 1) if emoji in query.accept), None)
        answers.append(QueryAnswer(id=query.id, gallery=gallery.style, rank=rank, hits=found))
    return answers


def count_answers(answers: Sequence[QueryAnswer], *, queries: Sequence[FreeQuery]) -> Iterator[Measurement]:
    """Count queries answered, by split and language and in all; the value is a number of queries."""
    ranks = {(answer.gallery, answer.id): answer.rank for answer in answers}
    languages = [*dict.fromkeys(query.language for query in queries), "all"]
    for gallery in dict.fromkeys(answer.gallery for answer in answers):
        for split in Split:
            for language in languages:
                asked = [q for q in queries if q.split is split and language in (q.language, "all")]
                yield Measurement(
                    table="queries",
                    subject=gallery,
                    row=language,
                    metric=split.value,
                    value=float(sum(ranks[gallery, query.id] is not None for query in asked)),
                    unit=f"of {len(asked)}",
                    count=len(asked),
                )


def measure_scenes(
    encoder: TextEncoder,
    scenes: Sequence[Scene],
    vectors: NDArray[np.float32],
    *,
    subject: str = "scenes",
    every_language: bool = False,
) -> Iterator[Measurement]:
    """Find scenes by long English captions, whole and cut short, and tell the captions from wrong twins."""
    make = partial(Measurement, table="scenes", subject=subject, count=len(scenes))
    english = [scene.captions["en"] for scene in scenes]
    everyone = list(range(len(scenes)))
    short = cut_texts(encoder, english, tokens=CUT_TOKENS)
    whole, cut = (_text_to_image(encoder, texts, vectors, everyone) for texts in (english, short))
    for row, result in (("en", whole), (f"en, first {CUT_TOKENS} tokens", cut)):
        for k, share in _recalls(result):
            yield make(row=row, metric=f"R@{k}", value=share)
    # If the cut captions find nothing, one found query is assumed: the ratio is then a lower bound, and finite.
    ratio = whole.recall[1].pessimistic / max(cut.recall[1].pessimistic, 1 / len(scenes))
    yield make(row="en", metric=f"R@1 over R@1 of {CUT_TOKENS} tokens", value=ratio, unit="x")
    counts = np.asarray(encoder.count_tokens(english)) - template_tokens(encoder)
    for name, value in (("fewest", counts.min()), ("median", np.median(counts)), ("most", counts.max())):
        yield make(row="en", metric=f"{name} tokens", value=float(value), unit="tokens")
    for twin, row in (("last", "twins: last object"), ("swap", "twins: two places swapped")):
        chosen = [number for number, scene in enumerate(scenes) if twin in scene.twins]
        if chosen:
            told = tell_apart(
                encoder,
                right=[english[number] for number in chosen],
                wrong=[scenes[number].twins[twin] for number in chosen],
                vectors=vectors[chosen],
            )
            yield make(row=row, metric="told apart", value=100 * told, count=len(chosen))
    others = {language for scene in scenes for language in scene.captions} - {"en"}
    for language in sorted(others) if every_language else ():
        own = {n: scene.captions[language] for n, scene in enumerate(scenes) if language in scene.captions}
        for k, share in _recalls(_text_to_image(encoder, list(own.values()), vectors, list(own))):
            yield make(row=language, metric=f"R@{k}", value=share, count=len(own))


def tell_apart(
    encoder: TextEncoder, *, right: Sequence[str], wrong: Sequence[str], vectors: NDArray[np.float32]
) -> float:
    """Share of images that score their caption above its wrong twin by more than rounding; guessing gives 0.5."""
    scores = [
        (encoder.encode_texts(texts).astype(np.float64) * vectors).sum(axis=1) for texts in (right, wrong)
    ]
    if not np.isfinite(scores).all():
        raise ValueError("got a non-finite score for a pair of captions, expected finite numbers")
    return float(np.mean(scores[0] - scores[1] > _ROUNDING))


def cut_texts(encoder: TextEncoder, texts: Sequence[str], *, tokens: int) -> list[str]:
    """Shorten each text to its longest beginning of at most ``tokens`` tokens, the template's not counted."""
    tokens += template_tokens(encoder)
    fits = [
        len(text) * (count <= tokens) for text, count in zip(texts, encoder.count_tokens(texts), strict=True)
    ]
    fails = [len(text) + 1 for text in texts]
    while searched := [n for n in range(len(texts)) if fails[n] - fits[n] > 1]:
        middles = [(fits[n] + fails[n]) // 2 for n in searched]
        counts = encoder.count_tokens(
            [texts[n][:middle] for n, middle in zip(searched, middles, strict=True)]
        )
        for n, middle, count in zip(searched, middles, counts, strict=True):
            (fits if count <= tokens else fails)[n] = middle
    return [text[:length].rstrip() for text, length in zip(texts, fits, strict=True)]


def template_tokens(encoder: TextEncoder) -> int:
    """Tokens that the encoder puts around every text: what is not doubled when the text is."""
    once, twice = encoder.count_tokens(["red", "red red"])
    return max(2 * once - twice, 0)


def measure_cost(
    encoder: Encoder, *, queries: Sequence[str], captions: Sequence[str], images: Sequence[TarImage]
) -> Iterator[Measurement]:
    """Time queries and captions one by one on one thread, and images on all processors; medians of three rounds."""
    make = partial(Measurement, table="cost", subject="speed")
    with _threads(1):
        for row, texts in (("query", queries), ("long caption", captions)):
            if texts:
                times = query_times(encoder, texts)
                yield make(
                    row=row,
                    metric="median",
                    value=1000 * float(np.median(times)),
                    unit="ms",
                    count=len(times),
                )
    content = [image.read() for image in images[:_TIMED_IMAGES]]
    pixels = [encoder.prepare(one).pixels for one in content]
    starts = range(0, len(pixels), _TIMED_BATCH)
    jobs = {
        "images, from files": lambda: encoder.encode_images(content, batch_size=_TIMED_BATCH),
        "images, network alone": lambda: [
            encoder.encode_prepared(pixels[n : n + _TIMED_BATCH]) for n in starts
        ],
    }
    with _threads(os.cpu_count() or 1):
        for row, job in jobs.items():
            rate = len(content) / median_seconds(job)
            yield make(row=row, metric="rate", value=rate, unit="1/s", count=len(content))


def measure_size(encoder: Encoder, folder: Path | None) -> Iterator[Measurement]:
    """Count parameters and the bytes of the files in an encoder's folder (1 MB = 1,000,000 bytes)."""
    make = partial(Measurement, table="cost", subject="size", metric="size")
    yield make(row="parameters", value=encoder.info.parameters / 1e6, unit="million")
    for name, row in (("model.safetensors", "weights"), ("tokenizer.json", "tokenizer")):
        if folder is not None and (folder / name).is_file():
            yield make(row=row, value=(folder / name).stat().st_size / 1e6, unit="MB")


@contextmanager
def _threads(number: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _text_to_image(
    encoder: TextEncoder, texts: Sequence[str], vectors: NDArray[np.float32], owners: Sequence[int]
) -> DirectionMetrics:
    pair = Embeddings(texts=encoder.encode_texts(texts), images=vectors)
    return direction_metrics(best_rank(pair, positives=np.asarray(owners)), ks=KS)


def _recalls(result: DirectionMetrics) -> Iterator[tuple[int, float]]:
    """(k, percent), ties against us."""
    return ((k, 100 * result.recall[k].pessimistic) for k in KS)
