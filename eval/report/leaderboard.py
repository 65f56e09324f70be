"""Results beside the published table: one table per protocol, and each of our numbers against its printed ones."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from llm2clip.eval.datasets.protocols import declared
from llm2clip.eval.datasets.retrieval_set import PARTIAL
from llm2clip.eval.results.encoder_record import NOTHING_KNOWN, Overlap, known_overlap
from llm2clip.eval.results.published_numbers import (
    NO_FLAG,
    Comparison,
    Flag,
    Published,
    compare_value,
    flag_of,
    of_dataset,
    same_weights,
)
from llm2clip.eval.results.records import Direction, EncoderRecord, Result, unpack
from llm2clip.eval.stats.bootstrap import Resampling
from llm2clip.eval.stats.languages import LanguageSummary, by_language
from llm2clip.eval.stats.paired_tests import against_best

DIRECTIONS: tuple[Direction, ...] = ("t2i", "i2t")
KS = (1, 5, 10)
_DRAWS = 2000
"""Of a test that only groups encoders; ``compare`` draws more."""

Measure: TypeAlias = tuple[Direction, int]
"""Direction and k."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One recall in percent."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table: an encoder that was measured, or one with published numbers."""

    label: str
    cells: dict[Measure, Cell]
    result: Result | None = None
    source: str = ""
    hf_id: str = ""
    flag: Flag = NO_FLAG
    overlap: Overlap = NOTHING_KNOWN
    """Whether a printed model is known to have seen the set in training; ours is in the result."""
    near_best: bool = False
    """Of ours: whether it cannot be distinguished from the best of ours here."""
    other_queries: bool = False
    """Of ours: whether its images or captions differ from those of most of ours here."""

    @property
    def ours(self) -> bool:
        """Whether it was measured here."""
        return self.result is not None


@dataclass(frozen=True, kw_only=True)
class Table:
    """One protocol, in one language."""

    dataset: str
    title: str
    ours: tuple[Row, ...]
    """Measured here, best first."""
    published: tuple[Row, ...]
    """Printed elsewhere, best first; those known to be wrong last."""

    def rows(self, *, limit: int) -> list[Row]:
        """Ours, and the best ``limit`` printed ones that may be believed, with all of the weights that we measured."""
        known = {row.hf_id for row in self.published if row.hf_id and self._measured(row)}
        best = [row for row in self.published if row.flag.status != "wrong"][:limit]
        kept = [row for row in self.published if row in best or row.hf_id in known]
        return sorted([*self.ours, *kept], key=_order)

    def _measured(self, row: Row) -> bool:
        return any(
            one.hf_id == row.hf_id
            for ours in self.ours
            if ours.result
            for one in same_weights(ours.result.encoder, dataset=self.dataset)
        )


@dataclass(frozen=True, kw_only=True)
class LanguageRow:
    """One encoder over the languages of one set."""

    protocol: str
    result: Result
    summary: LanguageSummary


@dataclass(frozen=True, kw_only=True)
class Board:
    """Everything there is to show."""

    results: tuple[Result, ...]
    tables: tuple[Table, ...]
    languages: tuple[LanguageRow, ...]
    """Text to image at 1 over the languages of a set, for each encoder that was measured in several."""
    comparisons: tuple[tuple[Result, Comparison], ...]
    """Ours against the printed numbers of the same weights under the same protocol."""


def build_board(results: Sequence[Result]) -> Board:
    """Sort results and join them with published numbers; encoders of one label get what tells them apart.

    Raises:
        ValueError: Two results are of the same encoder on the same set: one must go.
    """
    seen: dict[tuple[str, str], Result] = {}
    for result in results:
        key = (result.set.id, _who(result))
        if key in seen:
            raise ValueError(
                f"two results are of {result.encoder.label!r} on {result.set.id}, of {seen[key].date} and "
                f"{result.date}: leave one out"
            )
        seen[key] = result
    results = _told_apart(results)
    ids = sorted({result.set.id for result in results}, key=_set_order)
    return Board(
        results=tuple(results),
        tables=tuple(_table(name, [one for one in results if one.set.id == name]) for name in ids),
        languages=tuple(_language_rows(results)),
        comparisons=tuple((result, one) for result in results for one in compare_published(result)),
    )


def _told_apart(results: Sequence[Result]) -> list[Result]:
    """The results with what differs after a label that several encoders have: precision, weights, at last the hash."""
    groups: dict[str, dict[str, EncoderRecord]] = {}
    for result in results:
        groups.setdefault(result.encoder.label, {})[result.encoder.key] = result.encoder
    labels = {label: _differences(list(group.values())) for label, group in groups.items()}

    def told(encoder: EncoderRecord) -> EncoderRecord:
        said = labels[encoder.label][encoder.key]
        return replace(encoder, label=f"{encoder.label} ({said})") if said else encoder

    return [replace(result, encoder=told(result.encoder)) for result in results]


def _differences(encoders: Sequence[EncoderRecord]) -> dict[str, str]:
    """What tells encoders of one label apart, by key; empty for a single one."""
    if len(encoders) == 1:
        return {encoders[0].key: ""}
    traits = [
        (one.dtype, one.text_dtype, one.device.partition(":")[0], one.parity, one.weights_sha256[:8])
        for one in encoders
    ]
    varied = [place for place, values in enumerate(zip(*traits, strict=True)) if len(set(values)) > 1]
    said = [", ".join(dict.fromkeys(trait[place] for place in varied if trait[place])) for trait in traits]
    if len(set(said)) < len(said) or not all(said):
        said = [
            ", ".join(filter(None, (text, one.key[:8]))) for text, one in zip(said, encoders, strict=True)
        ]
    return {one.key: text for one, text in zip(encoders, said, strict=True)}


def _language_rows(results: Sequence[Result]) -> Iterator[LanguageRow]:
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if result.set.language and (found := result.direction("t2i")) and found.ranks:
            groups.setdefault((result.set.protocol, _who(result)), []).append(result)
    for (protocol, _), group in sorted(groups.items()):
        if len(group) < 2:
            continue
        hits, clusters = {}, {}
        for one in group:
            if one.set.language and (direction := one.direction("t2i")):
                hits[one.set.language] = (unpack(direction.ranks) <= 1).astype(np.float64)
                clusters[one.set.language] = unpack(direction.clusters).astype(np.int64)
        summary = by_language(hits, clusters=clusters, resampling=Resampling(times=_DRAWS))
        yield LanguageRow(protocol=protocol, result=group[0], summary=summary)


def compare_published(result: Result) -> list[Comparison]:
    """Each number of a result against what was printed for the same weights under the same protocol."""
    found = []
    for row in same_weights(result.encoder, dataset=result.set.id):
        direction = result.direction(row.direction)
        at = direction.at(row.k) if direction else None
        if direction and at:
            found.append(compare_value(row, ours=at.value, queries=direction.queries))
    return found


def published_table(dataset: str) -> tuple[Row, ...]:
    """The printed rows of one protocol, best first; those known to be wrong last."""
    grouped: dict[tuple[str, str], list[Published]] = {}
    for one in of_dataset(dataset):
        grouped.setdefault((one.model, plain_source(one.source)), []).append(one)
    rows = [_published_row(model, source, values) for (model, source), values in grouped.items()]
    return tuple(sorted(rows, key=_order))


def plain_source(source: str) -> str:
    """A source without the name of the single column."""
    return re.sub(r": \w+Retrieval cv_recall_at_\d+$", "", source)


def title_of(dataset: str) -> str:
    """The name of a protocol in words, with its language."""
    name, _, language = dataset.partition(":")
    protocol = declared(name.removesuffix(PARTIAL))
    title = protocol.title if protocol else name.removesuffix(PARTIAL)
    if name.endswith(PARTIAL):
        title += " (partial)"
    return f"{title}: {language}" if language else title


def _table(dataset: str, results: Sequence[Result]) -> Table:
    asked = Counter(result.set.sha256 for result in results).most_common(1)[0][0]
    shared = _shared_first([result for result in results if result.set.sha256 == asked])
    rows = (replace(_our_row(result, shared), other_queries=result.set.sha256 != asked) for result in results)
    ours = sorted(rows, key=_order)
    return Table(
        dataset=dataset, title=title_of(dataset), ours=tuple(ours), published=published_table(dataset)
    )


def _shared_first(results: Sequence[Result]) -> frozenset[str]:
    """The encoders that cannot be distinguished from the best, text to image at 1; none where only one was measured."""
    hits, clusters = {}, None
    for result in results:
        direction = result.direction("t2i")
        if direction and direction.ranks:
            hits[_who(result)] = (unpack(direction.ranks) <= 1).astype(np.float64)
            clusters = unpack(direction.clusters).astype(np.int64)
    if len(hits) < 2:
        return frozenset()
    how = Resampling(times=_DRAWS)
    return frozenset(
        one.name for one in against_best(hits, clusters=clusters, resampling=how) if not one.separable
    )


def _who(result: Result) -> str:
    """An encoder as it was called: one encoder under two labels is two lines."""
    return f"{result.encoder.key} {result.encoder.label}"


def _our_row(result: Result, shared: frozenset[str]) -> Row:
    cells = {
        (one.direction, at.k): Cell(value=100 * at.value, low=100 * at.low, high=100 * at.high)
        for one in result.directions
        for at in one.recall
    }
    return Row(
        label=result.encoder.label,
        cells=cells,
        result=result,
        hf_id=result.encoder.repository,
        near_best=_who(result) in shared,
    )


def _published_row(model: str, source: str, values: Sequence[Published]) -> Row:
    flags = [found for one in values if (found := flag_of(one)).status]
    return Row(
        label=model,
        cells={(one.direction, one.k): Cell(value=one.value) for one in values},
        source=source,
        hf_id=values[0].hf_id,
        flag=flags[0] if flags else NO_FLAG,
        overlap=known_overlap((model, values[0].hf_id), values[0].dataset),
    )


def _order(row: Row) -> tuple[bool, float]:
    """Best first by text to image at 1, then by what there is; wrong ones last."""
    for measure in [(direction, k) for k in KS for direction in DIRECTIONS]:
        if measure in row.cells:
            return row.flag.status == "wrong", -row.cells[measure].value + 1000 * KS.index(measure[1])
    return True, 0.0


def _set_order(dataset: str) -> tuple[str, bool, str]:
    name, _, language = dataset.partition(":")
    return name, language != "en", language
