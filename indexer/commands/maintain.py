"""What ``llm2clip-index`` add, update, remove, compact, export, explain and errors do: one call each, then print."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llm2clip.common.entrypoint import graceful_interrupt
from llm2clip.common.files import format_bytes
from llm2clip.common.terminal import escape_control, log_stderr
from llm2clip.indexer.commands import build as command
from llm2clip.indexer.commands import output as console
from llm2clip.indexer.commands.encoder_choice import source_of
from llm2clip.indexer.core.encoder_protocol import ImageEncoder
from llm2clip.indexer.core.results import BuildOptions, ChangeReport
from llm2clip.indexer.corpora.remote_store import fetch_callback
from llm2clip.indexer.lifecycle.compact import compact_index
from llm2clip.indexer.lifecycle.export import Format, export_index
from llm2clip.indexer.lifecycle.reencode import Overlap, reencode_index
from llm2clip.indexer.lifecycle.remove import Selection, remove_images
from llm2clip.indexer.lifecycle.repair import repair_index
from llm2clip.indexer.lifecycle.update import add_images, update_index
from llm2clip.indexer.search.explain import explain_search
from llm2clip.indexer.storage.manifest import KIND, read_manifest

_SHOWN = 20


def _print(report: Any, *, as_json: bool, lines: Sequence[str]) -> None:  # noqa: ANN401
    if as_json:
        print(json.dumps(asdict(report), ensure_ascii=False))
        return
    for line in lines:
        print(escape_control(line))


def _loader(folder: Path, name: str | None) -> Callable[[], ImageEncoder]:
    return lambda: command._load(name or read_manifest(folder).encoder_source)


def run_update(
    index: Path | None,
    *,
    corpora: Sequence[str] | None,
    encoder: str | None,
    batch_size: int | None,
    as_json: bool,
) -> None:
    """Update an index, or add to it, and print what was done."""
    folder = command.place_of(index)
    try:
        with (
            graceful_interrupt(),
            fetch_callback(log_stderr),
            console.progress_bar() as show,
            console.quiet_decoding(),
        ):
            source = source_of(encoder) if encoder else None
            options = BuildOptions(batch_size=batch_size, encoder_source=source, on_progress=show)
            loader = _loader(folder, encoder)
            if corpora is None:
                report = update_index(folder, encoder=loader, options=options)
            else:
                report = add_images(folder, corpora, encoder=loader, options=options)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(": what was embedded is kept, the same command goes on from there") from None
    print_change(report, as_json=as_json)


def run_remove(index: Path | None, selection: Selection, *, as_json: bool) -> None:
    """Remove images from an index and print how many."""
    print_change(remove_images(command.place_of(index), selection), as_json=as_json)


def print_change(report: ChangeReport, *, as_json: bool) -> None:
    """Print what a change did, in numbers."""
    same = max(0, min(report.unchanged, report.items - report.new - report.changed - report.described))
    named = {
        "new": report.new,
        "with other content": report.changed,
        "with another caption or time": report.described,
        "removed": report.removed,
        "as before": same,
        "left out as before (unreadable or removed)": report.unchanged - same,
    }
    parts = ", ".join(f"{count:,} {what}" for what, count in named.items() if count)
    lines = [f"{_images(report.items)} in the index: {parts or 'none'}."]
    if report.moved == 1:
        lines.append("1 of the new and the removed are one image that was moved.")
    elif report.moved:
        lines.append(f"{report.moved:,} of the new and the removed are the same images, moved.")
    if report.changed_anything:
        kept = f", {report.reused:,} found again by their content" if report.reused else ""
        lines.append(f"{report.embedded:,} embedded{kept}, in {report.seconds:,.1f} s.")
    else:
        lines.append(f"Nothing has changed, looked for {report.seconds:,.1f} s.")
    if report.bad:
        lines.append(f"{_images(report.bad)} could not be read:")
        lines += [f"  {bad.key}: {bad.reason}" for bad in report.bad_images[:_SHOWN]]
    if report.bad > _SHOWN:
        lines.append(f"  and {report.bad - _SHOWN:,} more: llm2clip-index errors --index {report.path}")
    _print(report, as_json=as_json, lines=lines)
    for each in report.notes:
        log_stderr(f"note: {each}")


def run_compact(index: Path | None, *, as_json: bool) -> None:
    """Compact an index and print what that saved."""
    report = compact_index(command.place_of(index))
    sizes = f"{format_bytes(report.bytes_before)} before, {format_bytes(report.bytes_after)} now"
    lines = [
        f"{_images(report.items)} in the index, {report.dropped:,} vectors dropped; {sizes}; {report.seconds:,.1f} s."
    ]
    _print(report, as_json=as_json, lines=lines)
    for each in report.notes:
        log_stderr(f"note: {each}")


def run_repair(index: Path | None, *, as_json: bool) -> dict[str, Any]:
    """Repair an index and print what was wrong; as JSON only return it."""
    report = repair_index(command.place_of(index))
    if as_json:
        return asdict(report)
    lines = [*report.repaired] or ["Nothing had to be repaired."]
    if report.lost:
        lines.append(
            f"{_images(report.lost)} lost their vectors. To embed them again: "
            f"llm2clip-index update --index {report.path}"
        )
    _print(report, as_json=False, lines=[*lines, f"{_images(report.items)} in the index."])
    return asdict(report)


def run_export(index: Path | None, out: Path, *, format: Format, as_json: bool) -> None:
    """Export an index and print what was written."""
    report = export_index(command.place_of(index), out, format=format)
    line = f"{_images(report.items)}, {report.dim} numbers each, {format_bytes(report.bytes)}:"
    _print(report, as_json=as_json, lines=[line, *(f"  {report.path}/{name}" for name in report.files)])


def run_explain(index: Path | None, *, where: str | None, as_json: bool) -> None:
    """Print what a search of an index would do."""
    with command._open(index) as opened:
        report = explain_search(opened, where=where)
    exact = report.ann_index in ("none", KIND)
    ann = f"{report.ann_index} over {report.covered:,} vectors, {report.tail:,} added since"
    line = f"{_images(report.items)}; {f'{report.ann_index}: exact scan of all vectors' if exact else ann}"
    _print(report, as_json=as_json, lines=[line, *(f"  {step}" for step in report.steps)])


def run_errors(index: Path | None, *, as_json: bool) -> None:
    """Print the images that could not be read."""
    command.run_info(index, errors=True, as_json=as_json)


def run_reencode(
    old: Path, index: Path | None, *, encoder: str, batch_size: int | None, as_json: bool
) -> None:
    """Embed the images of an index with another encoder and print how the two agree."""
    source = command.place_of(old)
    read_manifest(source)  # an index that is not there is told before anything is loaded
    place = index or source.with_name(f"{source.name.removesuffix('.index')}-{Path(encoder).name}.index")
    with (
        graceful_interrupt(),
        fetch_callback(log_stderr),
        console.progress_bar() as show,
        console.quiet_decoding(),
    ):
        loaded = command._load(encoder)
        options = BuildOptions(batch_size=batch_size, encoder_source=source_of(encoder), on_progress=show)
        texts = _text_encoders(source, loaded)
        report = reencode_index(source, place, encoder=loaded, options=options, texts=texts)
    lines = [
        f"{_images(report.items)} embedded with {report.encoder} in {report.seconds:,.1f} s.",
        f"overlap@10 with {report.old}: {_agreement(report.images, 'images')}",
    ]
    if report.captions is not None:
        lines.append(f"overlap@10 with {report.old}: {_agreement(report.captions, 'captions')}")
    if report.bad:
        lines.append(f"{_images(report.bad)} could not be read: llm2clip-index errors --index {report.path}")
    _print(report, as_json=as_json, lines=[*lines, f"Index:  {report.path}"])


def _text_encoders(folder: Path, new: Any) -> Any:  # noqa: ANN401
    """The old and the new encoder, for captions as queries; None where the old one cannot be loaded."""
    try:
        return command._load(read_manifest(folder).encoder_source), new
    except (ValueError, OSError) as error:
        log_stderr(f"note: captions were not compared, the old encoder cannot be loaded: {error}")
        return None


def _agreement(overlap: Overlap, what: str) -> str:
    return f"{overlap.overlap:.1%} ({overlap.queries:,} {what} as queries)"


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"
