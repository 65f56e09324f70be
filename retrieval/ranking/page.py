"""From the vector of a query to a page of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

from llm2clip.retrieval.ranking.cursor import MOST_PAGED, Cursor
from llm2clip.retrieval.ranking.options import Page, SearchOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llm2clip.indexer import Hit, SearchableIndex
    from llm2clip.retrieval.ranking.calibration import Calibration

_SPARE = 16
"""Hits fetched beyond those of a page, since some may be copies of others."""
POOL = 500
"""Best hits that are put into another order; those after them keep theirs."""
NOTHING = "nothing like that here"
"""What is said if no image reaches ``min_confidence``."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The images of one or several indexes, ranked for one query."""

    indexes: Sequence[SearchableIndex]
    """Indexes of one encoder, not empty."""
    vector: NDArray[np.float32]
    """Unit vector of the query. Shape: (dim,), float32."""
    text: str | None = None
    """The query, if it is a text alone: for file names and captions."""
    read: tuple[str, ...] = ()
    """What was read of the query, for ``Page.explanation``."""
    calibrations: Sequence[Calibration | None] = ()
    """Of each index, None where it is not known; empty for queries with images, which have none."""
    known: Sequence[Hit] = ()
    """The nearest images without a filter, as many as are known already."""

    def page(self, options: SearchOptions) -> Page:
        """One page.

        Raises:
            ValueError: The filter or the cursor is invalid, or ``min_confidence`` is given for a query without
                calibrations.
        """
        cursor = Cursor.of(options.cursor) if options.cursor else None
        generation = "-".join(str(index.manifest.generation) for index in self.indexes)
        seen = cursor.seen if cursor else (options.page - 1) * options.k
        if seen > MOST_PAGED:
            raise ValueError(f"pages end after {MOST_PAGED:,} hits; narrow the query with a filter")
        allowed = sum(index.count(options.where) for index in self.indexes)
        if options.by == "caption":
            hits = self._arranged(self._worded(options), options)
            total = len(hits)
        elif options.min_confidence is not None:
            hits = self._arranged(self._above(options.min_confidence, where=options.where), options)
            total = len(hits)
        else:
            hits, total = self._best(seen + options.k + 1, options, most=allowed), allowed
        if cursor is not None and cursor.generation != generation and self._is_by_score(options):
            # The index changed: go on after the last hit that was shown, so that none is shown twice.
            rest = [hit for hit in hits if (-hit.score, hit.id) > (-cursor.score, cursor.id)]
        else:
            rest = hits[seen:]
        shown = rest[: options.k]
        if options.sort == "date" and options.min_confidence is None:
            shown = newest_first(shown)
        last = min(rest[: options.k], key=lambda hit: (hit.score, -hit.id), default=None)
        following = None
        if last is not None and len(rest) > options.k and seen + len(shown) <= MOST_PAGED:
            following = Cursor(seen=seen + len(shown), generation=generation, score=last.score, id=last.id)
        notes = []
        if options.min_confidence is not None and not hits:
            notes.append(NOTHING)
        return Page(
            hits=[replace(hit, rank=rank) for rank, hit in enumerate(self._sure(shown), start=seen + 1)],
            total=total,
            cursor=str(following) if following else None,
            generation=generation,
            notes=tuple(notes),
            explanation=self._explanation(options) if options.explain else (),
        )

    def _explanation(self, options: SearchOptions) -> tuple[str, ...]:
        from llm2clip.retrieval.ranking.explain import explain

        return explain(
            options,
            read=self.read,
            fused=self._is_fused(options),
            indexes=self.indexes,
            calibrations=self.calibrations,
        )

    def index_of(self, hit: Hit) -> SearchableIndex:
        """The index that a hit is from."""
        return next((index for index in self.indexes if str(index.path) == hit.index), self.indexes[0])

    def nearest(self, vector: NDArray[np.float32], *, k: int, where: str | None) -> list[Hit]:
        """The ``k`` images of all indexes that are nearest to a unit vector, best first."""
        if where is None and vector is self.vector and k <= len(self.known):
            return list(self.known[:k])
        found = [index.search(vector[None], k=k, where=where)[0] for index in self.indexes]
        return found[0] if len(found) == 1 else merged(self.indexes, found)[:k]

    def looked_at(self, wanted: int, options: SearchOptions) -> int:
        """How many of the nearest images are fetched to show so many hits."""
        return max(wanted, 0 if self._is_by_score(options) else POOL) + _SPARE * options.fold

    def _best(self, wanted: int, options: SearchOptions, *, most: int) -> list[Hit]:
        """At least the first ``wanted`` hits, if there are as many, in the order asked for."""
        wanted = max(wanted, 0 if self._is_by_score(options) else POOL)
        count = min(self.looked_at(wanted, options), most, MOST_PAGED)
        while count:
            found = self.nearest(self.vector, k=count, where=options.where)
            hits = self._arranged(found, options)
            if len(hits) >= wanted or count >= min(most, MOST_PAGED):
                return hits
            count = min(4 * count, most, MOST_PAGED)
        return []

    def _above(self, confidence: float, *, where: str | None) -> list[Hit]:
        """All images of at least a confidence, up to ``MOST_PAGED``, best score first."""
        found = [self._of_index(place, confidence, where=where) for place in range(len(self.indexes))]
        hits = found[0] if len(found) == 1 else merged(self.indexes, found)
        return hits[:MOST_PAGED]

    def _of_index(self, place: int, confidence: float, *, where: str | None) -> list[Hit]:
        import numpy as np

        index, calibration = self.indexes[place], self._calibration(place)
        if calibration is None:
            raise ValueError(
                "confidence is known only for queries of texts; leave out the least confidence for images"
            )
        # A search for the centred query ranks by the centred score.
        moved = self.vector.astype(np.float64) - calibration.centre
        length = float(np.linalg.norm(moved))
        if not length:
            return []
        least, count = calibration.least(confidence) / length, 64
        unit = (moved / length).astype(np.float32)[None]
        while True:
            hits = index.search(unit, k=count, where=where)[0]
            if len(hits) < count or hits[-1].score < least or count >= MOST_PAGED:
                break
            count = min(8 * count, MOST_PAGED)
        passed = [hit for hit in hits if hit.score >= least]
        scores = self._scores(index, [hit.id for hit in passed])
        scored = [replace(hit, score=float(score)) for hit, score in zip(passed, scores, strict=True)]
        return sorted(scored, key=lambda hit: (-hit.score, hit.id))

    def _scores(self, index: SearchableIndex, ids: Sequence[int]) -> NDArray[np.float32]:
        """Scores as ``Index.search`` gives them. Shape: (len(ids),), float32."""
        from llm2clip.indexer.ann.faiss_flat import exact_scores

        return exact_scores(index.take(ids), self.vector)

    def _calibration(self, place: int) -> Calibration | None:
        return self.calibrations[place] if self.calibrations else None

    def _sure(self, hits: Sequence[Hit]) -> list[Hit]:
        """The hits with their confidences, where they are known."""
        if not any(self.calibrations) or not hits:
            return list(hits)
        import numpy as np

        from llm2clip.retrieval.ranking.duplicates import stored_vectors

        vectors = stored_vectors(hits, self.index_of)
        confident = []
        for hit, vector in zip(hits, vectors, strict=True):
            calibration = self._calibration(self.indexes.index(self.index_of(hit)))
            if calibration is not None:
                centred = np.float64(hit.score) - vector.astype(np.float64) @ calibration.centre
                hit = replace(hit, confidence=float(calibration.confidence(centred)))
            confident.append(hit)
        return confident

    def _arranged(self, hits: list[Hit], options: SearchOptions) -> list[Hit]:
        """The hits, best score first, as the options want them: copies folded, in another order."""
        if self._is_fused(options):
            hits = self._fused(hits, self._worded(options))
        if options.fold:
            from llm2clip.retrieval.ranking.duplicates import folded

            hits = folded(hits, self.index_of)
        if options.diverse:
            hits = self._diverse(hits)
        if options.sort == "date" and options.min_confidence is not None:
            hits = newest_first(hits)
        return hits

    def _is_fused(self, options: SearchOptions) -> bool:
        """Whether words count beside the score: where that is asked for, or the query looks like a file name."""
        if options.by != "auto" or self.text is None or not any(char in ".0123456789" for char in self.text):
            return options.by == "all" and self.text is not None
        from llm2clip.retrieval.ranking.words import is_name

        return is_name(self.text)

    def _is_by_score(self, options: SearchOptions) -> bool:
        """Whether pages follow one another by score."""
        sorted_by_time = options.sort == "date" and options.min_confidence is not None
        return not (options.diverse or sorted_by_time or options.by == "caption" or self._is_fused(options))

    def _worded(self, options: SearchOptions) -> list[Hit]:
        """The images found by words: those named so first, then those with all words, best first."""
        from llm2clip.retrieval.ranking.words import matching, named

        if self.text is None:
            raise ValueError("only a query of one text can be compared with captions")
        found: list[list[Hit]] = []
        for index in self.indexes:
            ids = [] if options.by == "caption" else named(index, self.text)
            if options.by != "auto":
                ids += matching(index, self.text, captions_only=options.by == "caption")
            ids = index.passing(dict.fromkeys(ids), where=options.where)
            hits = [hit for id in ids if (hit := index.hit(id)) is not None]
            scores = self._scores(index, [hit.id for hit in hits])
            place = str(index.path) if len(self.indexes) > 1 else None
            found.append(
                [
                    replace(hit, score=float(score), index=place)
                    for hit, score in zip(hits, scores, strict=True)
                ]
            )
        return [hit for rank in zip_longest(*found) for hit in rank if hit is not None]

    def _fused(self, hits: list[Hit], worded: Sequence[Hit]) -> list[Hit]:
        """Hits by score, the first of them fused with those found by words."""
        from llm2clip.retrieval.ranking.words import fused

        pool = {(hit.index, hit.id): hit for hit in [*worded, *hits[:POOL]]}
        places = {key: place for place, key in enumerate(pool)}
        by_score = [places[hit.index, hit.id] for hit in hits[:POOL]]
        order = fused(by_score, [places[hit.index, hit.id] for hit in worded])
        known = list(pool.values())
        return [known[place] for place in order] + [
            hit for hit in hits[POOL:] if (hit.index, hit.id) not in pool
        ]

    def _diverse(self, hits: list[Hit]) -> list[Hit]:
        import numpy as np

        from llm2clip.retrieval.ranking.diversity import diverse_order
        from llm2clip.retrieval.ranking.duplicates import stored_vectors

        pool = hits[:POOL]
        scores = np.array([hit.score for hit in pool], dtype=np.float64)
        order = diverse_order(scores, stored_vectors(pool, self.index_of))
        return [pool[place] for place in order] + hits[POOL:]


def newest_first(hits: Sequence[Hit]) -> list[Hit]:
    """Hits by their times as clocks showed them, those without one last; equal times as they were."""
    timed = sorted((hit for hit in hits if hit.time), key=lambda hit: str(hit.time)[:19], reverse=True)
    return [*timed, *(hit for hit in hits if not hit.time)]


def merged(indexes: Sequence[SearchableIndex], found: Sequence[Sequence[Hit]]) -> list[Hit]:
    """The hits of several indexes, best first, each image once; equal scores in the order of the indexes."""
    of_index = [
        [replace(hit, index=str(index.path)) for hit in hits]
        for index, hits in zip(indexes, found, strict=True)
    ]
    best: dict[str, Hit] = {}
    for hit in sorted(chain.from_iterable(of_index), key=lambda hit: -hit.score):
        best.setdefault(hit.uri, hit)
    return [replace(hit, rank=rank) for rank, hit in enumerate(best.values(), start=1)]
