"""``llm2clip-eval prepare``: the files that a protocol needs, their publishers and licences, and their state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llm2clip.common.files import counted
from llm2clip.eval.datasets.protocols import Counts, Protocol, Source, find_protocol, protocol_ids, source
from llm2clip.eval.datasets.retrieval_set import ImageRef, RetrievalSet, ids_sha256, some
from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.eval.loaders.load import load_protocol
from llm2clip.eval.loaders.protocol_files import Layout, file_hash


@dataclass(frozen=True, kw_only=True)
class NeedReport:
    """One thing that a protocol needs."""

    what: str
    paths: tuple[str, ...]
    """Accepted paths below the data folder; one suffices unless ``all_of``."""
    all_of: bool
    there: tuple[str, ...]
    sources: tuple[str, ...]

    @property
    def met(self) -> bool:
        """Whether enough exists."""
        return len(self.there) == len(self.paths) if self.all_of else bool(self.there)


@dataclass(frozen=True, kw_only=True)
class SetReport:
    """What reading a protocol in one language gave."""

    language: str | None
    state: str
    """``complete``, ``partial``, ``unusable``, or ``absent`` where a file is missing."""
    counts: Counts | None = None
    notes: tuple[str, ...] = ()
    """What differs from the protocol, or what to know."""
    files: dict[str, str] = field(default_factory=dict)
    image_ids_sha256: str | None = None
    """SHA-256 of the sorted image ids, one per line: compare it with others."""


@dataclass(frozen=True, kw_only=True)
class PrepareReport:
    """A protocol, what it needs, and what exists."""

    protocol: Protocol
    data: Path
    needs: tuple[NeedReport, ...]
    sources: dict[str, Source]
    archives: dict[str, str]
    """State of each published archive with a known hash that is in the data folder: ``right`` or what differs."""
    sets: tuple[SetReport, ...]

    @property
    def complete(self) -> bool:
        """Whether every requested set can be measured under its full name, and every archive has its hash."""
        right = all(state == "right" for state in self.archives.values())
        return right and all(each.state == "complete" for each in self.sets)

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {**asdict(self), "data": str(self.data), "complete": self.complete}


def prepare(name: str, *, data: Path, language: str | None = None, images: bool = False) -> PrepareReport:
    """Look for a protocol's files and read what exists; nothing is downloaded or changed."""
    base, _, suffix = name.partition(":")
    protocol = find_protocol(base)
    wanted = language or suffix or None
    if wanted is not None and wanted not in protocol.languages:
        known = ", ".join(protocol.languages) or "none: it has but one"
        raise DatasetError(f"{base} got language '{wanted}', expected one of: {known}")
    languages: Sequence[str | None] = (wanted,) if wanted else protocol.languages or (None,)
    needs = tuple(_needs(protocol, data, languages))
    decoded: dict[ImageRef, str] | None = {} if images else None
    return PrepareReport(
        protocol=protocol,
        data=data,
        needs=needs,
        sources={key: source(key) for need in needs for key in need.sources},
        archives=dict(_archives(protocol, data)),
        sets=tuple(_read(protocol, data, each, decoded=decoded) for each in languages),
    )


def summary(data: Path) -> Iterator[tuple[str, str, bool]]:
    """Each declared id with its title, and whether something of all it needs is in the data folder."""
    for name in protocol_ids():
        protocol = find_protocol(name)
        needs = _needs(protocol, data, protocol.languages[:1] or (None,))
        yield name, protocol.title, all(need.met for need in needs)


def as_text(report: PrepareReport) -> Iterator[str]:
    """The report for a person, line by line."""
    protocol = report.protocol
    total = protocol.total_captions
    in_all = f" a language, {total:,} captions in the file" if total else ""
    yield f"{protocol.id}: {protocol.title}"
    yield f"  declared  {_counted(protocol.counts)}{in_all}; " + ", ".join(protocol.directions)
    if protocol.languages:
        yield f"  languages {' '.join(protocol.languages)}"
    yield f"  captions  {protocol.rule}"
    yield from (f"  trap      {trap}" for trap in protocol.traps)
    yield f"  needed below {report.data} (nothing is downloaded for you):"
    for need in report.needs:
        joined = (" and " if need.all_of else " or ").join(need.paths)
        yield f"    {'present' if need.met else 'MISSING':<9} {joined}: {need.what}"
    yield from (f"    archive   {name}: {state}" for name, state in report.archives.items())
    yield "  published by:"
    for origin in report.sources.values():
        yield f"    {origin.publisher}"
        yield f"      get      {origin.get}"
        yield f"      licence  {origin.licence}"
    yield "  read:"
    for each in report.sets:
        yield from _set_text(protocol, each)


def _needs(protocol: Protocol, data: Path, languages: Sequence[str | None]) -> Iterator[NeedReport]:
    for role, need in protocol.needs.items():
        if need.with_captions and not any((data / each).exists() for each in need.with_captions):
            continue
        spread = any("{language}" in path for path in need.paths)
        for language in languages if spread else languages[:1]:
            names = tuple(Layout(protocol, root=data, language=language).names(role))
            yield NeedReport(
                what=need.what + (f" ({language})" if spread else ""),
                paths=names,
                all_of=need.all_of,
                there=tuple(name for name in names if (data / name).exists()),
                sources=need.sources,
            )


def _archives(protocol: Protocol, data: Path) -> Iterator[tuple[str, str]]:
    keys = dict.fromkeys(key for need in protocol.needs.values() for key in need.sources)
    for name, expected in ((name, each) for key in keys for name, each in source(key).archives.items()):
        if (data / name).is_file():
            algorithm, _, right = expected.partition(":")
            got = file_hash(data / name, algorithm)
            wrong = f"got {algorithm} {got}, expected {right}: get it again"
            yield name, "right" if got == right else wrong


def _read(
    protocol: Protocol, data: Path, language: str | None, *, decoded: dict[ImageRef, str] | None
) -> SetReport:
    if unmet := [need.what for need in _needs(protocol, data, (language,)) if not need.met]:
        return SetReport(language=language, state="absent", notes=(f"missing: {', '.join(unmet)}",))
    try:
        found = load_protocol(protocol.id, data=data, language=language)
    except (DatasetError, OSError) as error:
        return SetReport(language=language, state="unusable", notes=(str(error),))
    state, notes = "complete" if found.complete else "partial", found.notes
    if decoded is not None and (damaged := _damaged(found, decoded)):
        state = "unusable"
        notes = (*notes, f"{counted(len(damaged), 'image')} cannot be decoded: {some(damaged)}")
    return SetReport(
        language=language,
        state=state,
        counts=found.counts,
        notes=notes,
        files=dict(found.files),
        image_ids_sha256=ids_sha256([*(image.key for image in found.images), *found.missing]),
    )


def _damaged(found: RetrievalSet, decoded: dict[ImageRef, str]) -> list[str]:
    """Images that cannot be decoded, each with the reason; what was tried is remembered in ``decoded``."""
    from llm2clip.encoders.core.errors import ImageError
    from llm2clip.encoders.images.decode import read_image

    for image in found.images:
        if image not in decoded:
            try:
                read_image(image.read())
                decoded[image] = ""
            except (DatasetError, ImageError, OSError) as error:
                decoded[image] = str(error)
    return [f"{image.key} ({decoded[image]})" for image in found.images if decoded[image]]


def _set_text(protocol: Protocol, report: SetReport) -> Iterator[str]:
    name = protocol.id + "+partial" * (report.state == "partial")
    name += f":{report.language}" if report.language else ""
    counted = f": {_counted(report.counts)}" if report.counts else ""
    yield f"    {report.state:<9} {name}{counted}"
    yield from (f"              {note}" for note in report.notes)
    if report.image_ids_sha256:
        yield f"              image ids sha256 {report.image_ids_sha256[:16]}"
    yield from (f"              {path} sha256 {hashed[:16]}" for path, hashed in report.files.items())


def _counted(counts: Counts) -> str:
    said = [f"{value:,} {name}" for name, value in asdict(counts).items() if value is not None]
    return ", ".join(said) or "counts differ by language"
