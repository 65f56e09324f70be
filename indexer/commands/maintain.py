"""``llm2clip-index`` add, update, remove, compact, verify --repair, export and build --from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

from llm2clip.common.files import counted, format_bytes
from llm2clip.common.terminal import log_stderr
from llm2clip.indexer.commands.session import SHOWN, images, load, place_of, print_report, source_of, working
from llm2clip.indexer.core.address import EXAMPLE, as_address
from llm2clip.indexer.core.encoder_protocol import ImageEncoder
from llm2clip.indexer.core.errors import IndexerError
from llm2clip.indexer.core.results import BuildOptions, ChangeReport, Progress
from llm2clip.indexer.lifecycle.compact import compact_index
from llm2clip.indexer.lifecycle.export import Format, export_index
from llm2clip.indexer.lifecycle.reencode import Overlap, reencode_index
from llm2clip.indexer.lifecycle.remove import Selection, remove_images
from llm2clip.indexer.lifecycle.repair import repair_index
from llm2clip.indexer.lifecycle.update import add_images, update_index
from llm2clip.indexer.storage.manifest import read_manifest


def run_update(
    index: Path | None,
    *,
    corpora: Sequence[str] | None,
    encoder: str | None,
    batch_size: int | None,
    dtype: str = "auto",
    prune: bool = False,
    as_json: bool,
) -> None:
    """Update an index, or add to it, and print what was done."""
    folder = place_of(index)

    def load_named() -> ImageEncoder:
        show(Progress(stage="loading", done=0, total=0))
        return load(encoder or _encoder_source(folder), dtype=dtype)

    with working(interrupted=_interrupted) as show:
        options = BuildOptions(batch_size=batch_size, prune=prune, on_progress=show)
        if corpora is None:
            report = update_index(folder, encoder=load_named, options=options)
        else:
            report = add_images(folder, corpora, encoder=load_named, options=options)
    print_change(report, as_json=as_json)


def _interrupted() -> str:
    return "embedded images are kept; run the same command again to continue"


def run_remove(index: Path | None, selection: Selection, *, dry_run: bool = False, as_json: bool) -> None:
    """Remove images from an index and print which, or only print them."""
    report = remove_images(place_of(index), selection, dry_run=dry_run)
    keys, removed = report.removed_keys, report.removed
    lines = [f"Index: {report.path}"]
    lines += [f"{'Would remove' if dry_run else 'Removed'} {images(removed)}:"] if removed else []
    lines += [f"  {key}" for key in keys[:SHOWN]]
    lines += [f"  and {removed - SHOWN:,} more"] if removed > SHOWN else []
    lines.append(f"{images(report.items)} in the index.")
    if removed and not dry_run:
        lines.append("Updates do not add them again; llm2clip-index undo brings them back.")
    print_report(report, as_json=as_json, lines=lines, notes=report.notes)


def print_change(report: ChangeReport, *, as_json: bool, hint: Sequence[str] = ()) -> None:
    """Print what a change did, in numbers."""
    same = max(0, min(report.unchanged, report.items - report.new - report.changed - report.described))
    named = {
        "new": report.new - report.moved,
        "moved": report.moved,
        "changed": report.changed,
        "with new caption or time": report.described,
        "removed": report.removed - report.moved,
        "unchanged": same,
        "skipped (unreadable or removed)": report.unchanged - same,
    }
    parts = ", ".join(f"{count:,} {what}" for what, count in named.items() if count)
    lines = [f"{images(report.items)} in the index: {parts or 'none'}."]
    if report.changed_anything:
        kept = f", {report.reused:,} reused (same content)" if report.reused else ""
        done = f"{report.embedded:,} embedded{kept}, in " if report.embedded or kept else "Took "
        lines.append(f"{done}{report.seconds:,.1f} s.")
    else:
        lines.append(f"Nothing has changed; checked in {report.seconds:,.1f} s.")
    if report.bad:
        lines.append(f"{images(report.bad)} could not be read:")
        lines += [f"  {bad.key}: {bad.reason}" for bad in report.bad_images[:SHOWN]]
    if report.bad > SHOWN:
        lines.append(f"  and {report.bad - SHOWN:,} more: llm2clip-index errors --index {report.path}")
    print_report(report, as_json=as_json, lines=[*lines, *hint], notes=report.notes)


def run_compact(index: Path | None, *, as_json: bool) -> None:
    """Compact an index and print what that saved."""
    report = compact_index(place_of(index))
    sizes = f"{format_bytes(report.bytes_before)} before, {format_bytes(report.bytes_after)} now"
    dropped = counted(report.dropped, "vector")
    lines = [f"{images(report.items)} in the index; {dropped} removed; {sizes}; {report.seconds:,.1f} s."]
    print_report(report, as_json=as_json, lines=lines, notes=report.notes)


def run_repair(index: Path | None, *, as_json: bool) -> dict[str, Any]:
    """Repair an index and print what was wrong; as JSON only return it."""
    report = repair_index(place_of(index))
    if as_json:
        return asdict(report)
    lines = [*report.repaired] or ["Nothing to repair."]
    if report.lost:
        lines.append(
            f"{images(report.lost)} lost their vectors. To embed them again: "
            f"llm2clip-index update --index {report.path}"
        )
    print_report(report, as_json=False, lines=[*lines, f"{images(report.items)} in the index."])
    return asdict(report)


def run_export(index: Path | None, out: Path, *, format: Format, as_json: bool) -> None:
    """Export an index and print what was written."""
    report = export_index(place_of(index), out, format=format)
    line = f"{images(report.items)}, dimension {report.dim}, {format_bytes(report.bytes)}:"
    print_report(report, as_json=as_json, lines=[line, *(f"  {report.path}/{name}" for name in report.files)])


def run_export_to(index: Path | None, to: str, *, sync: bool, recall: float, as_json: bool) -> None:
    """Export an index to another engine and print what was sent."""
    from llm2clip.indexer.engines.export import export_to_engine

    address = as_address(to)
    if address is None:
        raise IndexerError(f"--to takes an address such as {EXAMPLE}; for files name a FOLDER instead")
    with working(interrupted=lambda: "Run the same command again: what was sent is kept.") as show:
        report = export_to_engine(place_of(index), address, sync=sync, recall=recall, on_progress=show)
    rate = report.sent / max(report.write_seconds, 1e-9)
    lines = [
        f"{report.address}: {images(report.items)}, dimension {report.dim}; {report.sent:,} written "
        f"({rate:,.0f} a second), {report.deleted:,} deleted, counted and sampled.",
        f"Searched exactly; prepared in {report.index_seconds:,.1f} s."
        if not report.effort
        else f"Index of type {report.kind}: recall@10 {report.recall:.3f} with effort {report.effort}; built and "
        f"tuned in {report.index_seconds:,.1f} s.",
        f"Search it:  llm2clip-search --index {quote(report.address)} QUERY",
    ]
    print_report(report, as_json=as_json, lines=lines)


def run_reencode(
    old: Path, index: Path | None, *, encoder: str, batch_size: int | None, as_json: bool
) -> None:
    """Embed the images of an index with another encoder and print how the two agree."""
    source = place_of(old)
    read_manifest(source)  # fails before anything is loaded
    place = index or source.with_name(f"{source.name.removesuffix('.index')}-{Path(encoder).name}.index")
    with working(interrupted=_interrupted) as show:
        loaded = load(encoder)
        options = BuildOptions(batch_size=batch_size, encoder_source=source_of(encoder), on_progress=show)
        texts = _text_encoders(source, loaded)
        report = reencode_index(source, place, encoder=loaded, options=options, texts=texts)
    lines = [
        f"{images(report.items)} embedded with {report.encoder} in {report.seconds:,.1f} s.",
        f"overlap@10 with {report.old}: {_agreement(report.images, 'images')}",
    ]
    if report.captions is not None:
        lines.append(f"overlap@10 with {report.old}: {_agreement(report.captions, 'captions')}")
    if report.bad:
        lines.append(f"{images(report.bad)} could not be read: llm2clip-index errors --index {report.path}")
    print_report(report, as_json=as_json, lines=[*lines, f"Index:  {report.path}"])


def _text_encoders(folder: Path, new: Any) -> Any:  # noqa: ANN401
    """The old and the new encoder, for captions as queries; None where the old one cannot be loaded."""
    try:
        return load(_encoder_source(folder)), new
    except (ValueError, OSError) as error:
        log_stderr(f"note: captions were not compared, the old encoder cannot be loaded: {error}")
        return None


def _agreement(overlap: Overlap, what: str) -> str:
    return f"{overlap.overlap:.1%} ({overlap.queries:,} {what} as queries)"


def _encoder_source(folder: Path) -> str:
    """The encoder that an index names; refused if the index comes from elsewhere and it is not in our catalogue."""
    from llm2clip.encoders.catalog.entries import find_encoder
    from llm2clip.indexer.core.index_paths import require_named_encoder

    name = read_manifest(folder).encoder_source
    if find_encoder(name) is None:
        require_named_encoder(name, index=folder)
    return name
