"""The measurements behind the report on nano, each a function from vectors and texts to numbers.

Scores are inner products of unit vectors throughout: no list of known answers, no anchors, no prompt.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llm2clip.eval.metrics.best_rank import best_rank
from llm2clip.eval.metrics.blockwise_scores import Embeddings
from llm2clip.eval.metrics.recall import DirectionMetrics, direction_metrics
from llm2clip.eval.nano_report.data import Gallery, Scene, write_gallery
from llm2clip.eval.nano_report.queries import FreeQuery, Split, plain_emoji
from llm2clip.eval.runner.evaluate import TextEncoder

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder
    from llm2clip.indexer import Index

KS = (1, 5, 10)
CUT_TOKENS = 75
"""Caption tokens that are left when a caption is cut: CLIP reads 77, its two marks included."""
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number of the report and what it was measured on."""

    table: str
    """``names``, ``queries``, ``scenes`` or ``cost``."""
    subject: str
    """Gallery style, or what was timed."""
    row: str
    """Language, caption form, or part."""
    metric: str
    """Such as ``R@1``."""
    value: float
    """Per cent for shares; else in ``unit``."""
    unit: str = "%"
    """Unit of ``value``."""
    count: int = 0
    """Queries behind the number; 0 where that means nothing."""
    blocks: bool = True
    """False when the transformer blocks of the language model were switched off."""


@dataclass(frozen=True, kw_only=True)
class QueryAnswer:
    """What one free-form query found."""

    id: str
    """Query id."""
    gallery: str
    """Gallery style."""
    rank: int | None
    """Rank of the first accepted hit among those returned, or ``None``."""
    hits: tuple[str, ...]
    """Emoji returned, best first."""
    blocks: bool = True
    """False when the transformer blocks of the language model were switched off."""


def measure_names(
    encoder: TextEncoder, gallery: Gallery, vectors: NDArray[np.float32], *, languages: Sequence[str]
) -> Iterator[Measurement]:
    """Ask for every image by its CLDR name, one language at a time, and average over languages.

    The one right answer is the emoji's own image, also where another emoji bears the same name.

    Args:
        encoder: Encodes the names.
        gallery: The images.
        vectors: Shape: (images, dim), float32, unit rows, in the gallery's order.
        languages: Languages to ask in.

    Yields:
        R@1, R@5 and R@10 of each language, then the row ``mean``.
    """
    shares: dict[int, list[float]] = {k: [] for k in KS}
    for language in languages:
        names = gallery.names(language)
        result = _text_to_image(encoder, list(names.values()), vectors, list(names))
        yield from _recalls(result, table="names", subject=gallery.style, row=language)
        for k in KS:
            shares[k].append(100 * result.recall[k].pessimistic)
    for k in KS:
        yield Measurement(
            table="names",
            subject=gallery.style,
            row="mean",
            metric=f"R@{k}",
            value=float(np.mean(shares[k])),
            count=len(languages),
        )


def index_gallery(encoder: Encoder, gallery: Gallery, folder: Path) -> Index:
    """Build and open a real index over the gallery alone."""
    from llm2clip.indexer import build_index, open_index

    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch) / f"{gallery.style}.tar"
        write_gallery(gallery, corpus)
        build_index(corpus, folder, encoder=encoder)
    return open_index(folder)


def answer_queries(
    encoder: TextEncoder, gallery: Gallery, index: Index, *, queries: Sequence[FreeQuery], k: int = 5
) -> list[QueryAnswer]:
    """Put free-form queries to an index and look for an accepted emoji among the first ``k`` hits."""
    vectors = encoder.encode_texts([query.text for query in queries])
    answers = []
    for query, hits in zip(queries, index.search(vectors, k=k), strict=True):
        found = tuple(plain_emoji(str(hit.metadata.get("emoji", ""))) for hit in hits)
        rank = next((place for place, emoji in enumerate(found, 1) if emoji in query.accept), None)
        answers.append(QueryAnswer(id=query.id, gallery=gallery.style, rank=rank, hits=found))
    return answers


def count_answers(answers: Sequence[QueryAnswer], *, queries: Sequence[FreeQuery]) -> Iterator[Measurement]:
    """Count queries answered, by split and language and in all; the value is a number of queries."""
    ranks = {(answer.gallery, answer.id): answer.rank for answer in answers}
    languages = list(dict.fromkeys(query.language for query in queries))
    for gallery in dict.fromkeys(answer.gallery for answer in answers):
        for split in Split:
            for language in (*languages, "all"):
                asked = [
                    query for query in queries if query.split is split and language in (query.language, "all")
                ]
                found = sum(ranks[gallery, query.id] is not None for query in asked)
                yield Measurement(
                    table="queries",
                    subject=gallery,
                    row=language,
                    metric=split.value,
                    value=float(found),
                    unit=f"of {len(asked)}",
                    count=len(asked),
                )


def measure_scenes(
    encoder: TextEncoder, scenes: Sequence[Scene], vectors: NDArray[np.float32], *, subject: str = "scenes"
) -> Iterator[Measurement]:
    """Find scenes by long English captions, whole and cut short, and tell the captions from wrong twins.

    Args:
        encoder: Encodes the captions.
        scenes: The scenes.
        vectors: Shape: (scenes, dim), float32, unit rows, in the order of ``scenes``.
        subject: Name of the set in the report.
    """

    def single(row: str, metric: str, value: float, unit: str = "%") -> Measurement:
        return Measurement(
            table="scenes", subject=subject, row=row, metric=metric, value=value, unit=unit, count=len(scenes)
        )

    english = [scene.captions["en"] for scene in scenes]
    everyone = list(range(len(scenes)))
    whole = _text_to_image(encoder, english, vectors, everyone)
    yield from _recalls(whole, table="scenes", subject=subject, row="en")
    cut = _text_to_image(encoder, cut_texts(encoder, english, tokens=CUT_TOKENS), vectors, everyone)
    yield from _recalls(cut, table="scenes", subject=subject, row=f"en, first {CUT_TOKENS} tokens")
    # A cut run that finds nothing is taken as one found query: the ratio is then a lower bound, and finite.
    floor = max(cut.recall[1].pessimistic, 1 / len(scenes))
    ratio = whole.recall[1].pessimistic / floor
    yield single("en", f"R@1 over R@1 of {CUT_TOKENS} tokens", ratio, "x")
    counts = np.asarray(encoder.count_tokens(english)) - template_tokens(encoder)
    for name, value in (("fewest", counts.min()), ("median", np.median(counts)), ("most", counts.max())):
        yield single("en", f"{name} tokens", float(value), "tokens")
    for twin, row in (("last", "twins: last object"), ("swap", "twins: two places swapped")):
        chosen = [number for number, scene in enumerate(scenes) if twin in scene.twins]
        if chosen:
            told = tell_apart(
                encoder,
                right=[english[number] for number in chosen],
                wrong=[scenes[number].twins[twin] for number in chosen],
                vectors=vectors[chosen],
            )
            yield replace(single(row, "told apart", 100 * told), count=len(chosen))


def measure_scene_languages(
    encoder: TextEncoder, scenes: Sequence[Scene], vectors: NDArray[np.float32], *, subject: str = "scenes"
) -> Iterator[Measurement]:
    """Find scenes by long captions in every language but English; arguments as in :func:`measure_scenes`."""
    for language in sorted({language for scene in scenes for language in scene.captions} - {"en"}):
        own = {n: scene.captions[language] for n, scene in enumerate(scenes) if language in scene.captions}
        result = _text_to_image(encoder, list(own.values()), vectors, list(own))
        yield from _recalls(result, table="scenes", subject=subject, row=language)


def tell_apart(
    encoder: TextEncoder, *, right: Sequence[str], wrong: Sequence[str], vectors: NDArray[np.float32]
) -> float:
    """Share of images that score their caption above its wrong twin; guessing gives 0.5.

    A lead within the rounding of single precision is a tie: a bag of tokens sums the same numbers, in another
    order.

    Returns:
        In [0, 1]; a tie counts as not told apart.

    Raises:
        ValueError: If a score is not finite.
    """
    scores = [
        (encoder.encode_texts(texts).astype(np.float64) * vectors).sum(axis=1) for texts in (right, wrong)
    ]
    if not np.isfinite(scores).all():
        raise ValueError("got a non-finite score for a pair of captions, expected finite numbers")
    return float(np.mean(scores[0] - scores[1] > _ROUNDING))


def cut_texts(encoder: TextEncoder, texts: Sequence[str], *, tokens: int) -> list[str]:
    """Shorten each text to its longest beginning of at most ``tokens`` tokens, the template's not counted.

    The encoder's own tokenizer counts. A text within the limit is returned unchanged.
    """
    tokens += template_tokens(encoder)
    fits = [0] * len(texts)
    fails = [len(text) + 1 for text in texts]
    ceiling = encoder.count_tokens(list(texts))
    for number, count in enumerate(ceiling):
        if count <= tokens:
            fits[number] = len(texts[number])
    while open_ones := [n for n in range(len(texts)) if fails[n] - fits[n] > 1]:
        middles = [(fits[number] + fails[number]) // 2 for number in open_ones]
        counts = encoder.count_tokens(
            [texts[n][:middle] for n, middle in zip(open_ones, middles, strict=True)]
        )
        for number, middle, count in zip(open_ones, middles, counts, strict=True):
            if count <= tokens:
                fits[number] = middle
            else:
                fails[number] = middle
    return [text[:length].rstrip() for text, length in zip(texts, fits, strict=True)]


def template_tokens(encoder: TextEncoder) -> int:
    """Tokens that the encoder puts around every text: what is not doubled when the text is."""
    once, twice = encoder.count_tokens(["red", "red red"])
    return max(2 * once - twice, 0)


def _text_to_image(
    encoder: TextEncoder, texts: Sequence[str], vectors: NDArray[np.float32], owners: Sequence[int]
) -> DirectionMetrics:
    pair = Embeddings(texts=encoder.encode_texts(texts), images=vectors)
    return direction_metrics(best_rank(pair, positives=np.asarray(owners)), ks=KS)


def _recalls(result: DirectionMetrics, *, table: str, subject: str, row: str) -> Iterator[Measurement]:
    for k in KS:
        yield Measurement(
            table=table,
            subject=subject,
            row=row,
            metric=f"R@{k}",
            value=100 * result.recall[k].pessimistic,
            count=result.queries,
        )
