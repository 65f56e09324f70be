"""How a page was found, a sentence per step."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm2clip.encoders import EncoderInfo
    from llm2clip.indexer import SearchableIndex
    from llm2clip.retrieval.query.expression import Term
    from llm2clip.retrieval.ranking.calibration import Calibration
    from llm2clip.retrieval.ranking.options import SearchOptions


def reading(terms: Sequence[Term], encoder: EncoderInfo) -> tuple[str, ...]:
    """What was read of a query, a sentence per term."""
    steps = []
    for term in terms:
        sign = "taken out" if term.excluded else f"weight {term.weight:g}"
        steps.append(f"read {term.kind} {term.value!r} with {encoder.name}, {sign}")
    return tuple(steps)


def explain(
    options: SearchOptions,
    *,
    read: Sequence[str],
    fused: bool,
    indexes: Sequence[SearchableIndex],
    calibrations: Sequence[Calibration | None],
) -> tuple[str, ...]:
    """What was read, which path answered, and what was done with the images found; arguments as of ``Ranking``."""
    steps = list(read)
    several = len(indexes) > 1
    for place, index in enumerate(indexes):
        begin = f"{index.path}: " if several else ""
        steps += [f"{begin}{step}" for step in index.explain(where=options.where)]
        calibration = calibrations[place] if calibrations else None
        if calibration is not None:
            marks = ", ".join(f"{calibration.least(share):.3f} is {share:.0%}" for share in (0.5, 0.8, 0.95))
            steps.append(
                f"{begin}confidence: the score less the image's mean over {calibration.captions} unrelated captions; "
                f"of these differences, {marks}"
            )
    if not any(calibrations):
        steps.append("confidence: not known for queries with images, or that take something away")
    if options.min_confidence is not None:
        steps.append(
            f"all images of a confidence of at least {options.min_confidence:g} were found by a search for the query "
            "less the mean caption, and then ranked by score"
        )
    if options.by == "caption":
        steps.append("captions with all words of the query are ranked by BM25; images were not compared")
    elif fused:
        steps.append(
            "file names"
            + (", captions and metadata" if options.by == "all" else "")
            + " that hold the query are put first, by reciprocal rank fusion with the ranking of images"
        )
    if options.fold:
        steps.append("copies of an image are folded into the best of them")
    if options.diverse:
        from llm2clip.retrieval.ranking.diversity import RELEVANCE

        steps.append(
            "the best hits are in the order of maximal marginal relevance, "
            f"{RELEVANCE:.0%} relevance and {1 - RELEVANCE:.0%} difference from the hits before"
        )
    if options.sort == "date":
        what = "the hits of a page" if options.min_confidence is None else "all hits above the cut-off"
        steps.append(f"{what} are sorted by capture time, newest first")
    return tuple(steps)
