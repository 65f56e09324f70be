"""``llm2clip-index`` undo, move, list, use and delete: indexes as a whole."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from llm2clip.common.files import format_bytes
from llm2clip.common.terminal import escape_control, log_stderr
from llm2clip.indexer.commands.session import SHOWN, images, place_of, print_report
from llm2clip.indexer.core.address import as_address
from llm2clip.indexer.core.errors import IndexerError
from llm2clip.indexer.core.index_paths import (
    INDEX_VARIABLE,
    choose_index,
    current_index,
    forget_index,
    known_indexes,
    named_place,
    remember,
)
from llm2clip.indexer.core.searchable import Described
from llm2clip.indexer.engines.opening import open_anywhere
from llm2clip.indexer.lifecycle.delete import delete_index, index_files
from llm2clip.indexer.lifecycle.move import indexes_below, move_sources
from llm2clip.indexer.lifecycle.undo import undo_change
from llm2clip.indexer.storage.manifest import read_manifest


@dataclass(frozen=True, kw_only=True)
class IndexSummary:
    """One line of ``llm2clip-index list``."""

    name: str
    path: str
    default: bool
    """Whether commands without ``--index`` take it."""
    images: int = 0
    bytes: int = 0
    encoder: str = ""
    corpora: tuple[str, ...] = ()
    """Folders or files of its sources."""
    missing: tuple[str, ...] = ()
    """Those of them that do not exist now."""
    problem: str = ""
    """Why it cannot be read."""


def run_undo(index: Path | None, *, as_json: bool) -> None:
    """Undo the last change and print what is back."""
    report = undo_change(place_of(index))
    both = set(report.back) & set(report.gone)
    back, gone = ([key for key in keys if key not in both] for keys in (report.back, report.gone))
    lines = [f"Index: {report.path}"]
    lines += _listed("back", back) + _listed("gone again", gone) + _listed("as before", sorted(both))
    if len(lines) == 1:
        lines.append(f"Its images are those of before, from {', '.join(report.sources[:3])}.")
    print_report(report, as_json=as_json, lines=[*lines, f"{images(report.items)} in the index."])


def _listed(what: str, keys: list[str]) -> list[str]:
    """A line with a number of images, and their keys."""
    if not keys:
        return []
    more = [f"  and {len(keys) - SHOWN:,} more"] if len(keys) > SHOWN else []
    return [f"{images(len(keys))} {what}:", *(f"  {key}" for key in keys[:SHOWN]), *more]


def run_move(index: Path | None, old: str, new: str, *, as_json: bool) -> None:
    """Move the sources of an index and print where they are now."""
    place = place_of(index)
    if index is None and place not in (having := indexes_below(old)) and len(having) == 1:
        [place] = having
    report = move_sources(place, old, new)
    lines = [f"Index: {report.path}", *(f"  now at {source}" for source in report.sources)]
    if report.tried:
        lines.append(f"{report.found:,} of {images(report.tried)} found there.")
    if report.found < report.tried:
        lines.append("Bring the index up to date with: llm2clip-index update")
    print_report(report, as_json=as_json, lines=lines)


def run_list(*, as_json: bool) -> None:
    """Print all indexes, two lines each; the default one is marked."""
    found = list(_summaries())
    if as_json:
        print(json.dumps([asdict(each) for each in found], ensure_ascii=False))
        return
    for each in found:
        mark = "*" if each.default else " "
        size = f"{images(each.images)}, {format_bytes(each.bytes)}, {each.encoder}"
        print(escape_control(f"{mark} {each.name}: {each.problem or size}"))
        for corpus in each.corpora[:3]:
            print(escape_control(f"    {corpus}{' (not there now)' if corpus in each.missing else ''}"))
        if len(each.corpora) > 3:
            print(f"    and {len(each.corpora) - 3:,} more")
    if not found:
        log_stderr("no index yet: build one with  llm2clip-index build FOLDER")
    elif any(each.default for each in found):
        log_stderr("*: taken by commands without --index; change that with  llm2clip-index use NAME")


def _summaries() -> Iterator[IndexSummary]:
    told = os.environ.get(INDEX_VARIABLE)
    current = Path(told).expanduser().absolute() if told else current_index()
    for name, path in known_indexes().items():
        shown = IndexSummary(name=name, path=str(path), default=path == current)
        try:
            manifest = read_manifest(path)
            size = sum(index_files(path).values())
        except (IndexerError, OSError) as error:
            yield replace(shown, problem=str(error))
            continue
        corpora = tuple(str(source.get("root") or source["spec"]) for source in manifest.sources)
        yield replace(
            shown,
            images=manifest.items,
            bytes=size,
            encoder=str(manifest.encoder["name"]),
            corpora=corpora,
            missing=tuple(each for each in corpora if os.path.isabs(each) and not os.path.exists(each)),
        )


def run_use(name: str | None, *, latest: bool) -> None:
    """Choose the default index, and print which it is."""
    if latest:
        choose_index(None)
    elif name is not None:
        place = place_of(Path(name))
        read_manifest(place)
        choose_index(place)
    current = current_index()
    if current is None:
        raise IndexerError("no index was built yet: build one with  llm2clip-index build FOLDER")
    print(escape_control(str(current)))
    if told := os.environ.get(INDEX_VARIABLE):
        log_stderr(f"note: {INDEX_VARIABLE} is set and comes first: {told}")


def run_delete(name: Path, *, yes: bool, as_json: bool) -> None:
    """Delete an index after a question, and print what was freed."""
    place = place_of(name)
    size = format_bytes(sum(index_files(place).values()))
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise IndexerError(f"this would delete the index {place} ({size}): add --yes to do it")
        print(
            escape_control(f"Delete the index {place} ({size})? Images stay. [y/N] "), end="", file=sys.stderr
        )
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise IndexerError("nothing was deleted")
    freed = delete_index(place)
    forget_index(place)
    if as_json:
        print(json.dumps({"path": str(place), "bytes": freed}, ensure_ascii=False))
    else:
        print(
            escape_control(
                f"Deleted the index {place}: {format_bytes(freed)}. Its images are where they were."
            )
        )


def run_trust(index: str) -> None:
    """Let an index of another machine have its images read and its encoder loaded; print which."""
    manifest: Described
    if address := as_address(index):
        with closing(open_anywhere(address)) as opened:
            manifest = opened.manifest
    else:
        manifest = read_manifest(place_of(Path(index)))
    remember(manifest.sources, encoder=manifest.encoder_source)
    for source in manifest.sources:
        print(escape_control(f"Images:  {named_place(source)} ({source['kind']})"))
    print(escape_control(f"Encoder: {manifest.encoder_source}"))
