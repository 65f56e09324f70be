"""``llm2clip-index`` info, errors, verify, explain and encoders: what an index is, and which encoders there are."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

from llm2clip.common.files import format_bytes
from llm2clip.common.terminal import escape_control, log_stderr
from llm2clip.indexer.commands.encoder_table import table
from llm2clip.indexer.commands.session import SHOWN, images, open_named, print_report
from llm2clip.indexer.core.results import IndexInfo
from llm2clip.indexer.search.explain import explain_search
from llm2clip.indexer.storage.manifest import KIND

_EXACT = ("none", KIND)


def run_info(index: Path | None, *, as_json: bool) -> None:
    """Print what an index is."""
    with open_named(index) as opened:
        info = opened.info()
    if as_json:
        print(json.dumps(asdict(info), ensure_ascii=False))
    else:
        _print_info(info)


def _print_info(info: IndexInfo) -> None:
    rows = {
        "index": info.path,
        "images": f"{info.items:,}" + (f" ({info.bad:,} more could not be read)" if info.bad else ""),
        "corpus": _sources(info),
        "encoder": f"{info.encoder['name']} (weights {str(info.encoder.get('weights_sha256', '?'))[:12]}...)",
        "vectors": f"dimension {info.dim}, float16; segments: {info.segments}; {_ann(info.ann)}",
        "faiss": info.faiss,
        "size": format_bytes(info.bytes),
        "built": f"{info.created} by {info.written_by}, generation {info.generation}",
    }
    for name, value in rows.items():
        for line in value.split("\n"):
            print(escape_control(f"{name:<9} {line}"))
            name = ""


def _ann(kind: str) -> str:
    return "exact search (no ANN index)" if kind in _EXACT else f"ANN index {kind}"


def _sources(info: IndexInfo) -> str:
    shown = [" in ".join(filter(None, [each["spec"], each.get("root")])) for each in info.sources]
    more = f"\nand {len(shown) - SHOWN:,} more" if len(shown) > SHOWN else ""
    return "\n".join(shown[:SHOWN]) + more


def run_errors(index: Path | None, *, as_json: bool) -> None:
    """Print the images that could not be read, with reasons."""
    with open_named(index) as opened:
        for error in opened.errors():
            row = {"key": error.key, "stage": error.stage, "reason": error.reason}
            line = f"{escape_control(error.key)}\t{escape_control(error.reason)}"
            print(json.dumps(row, ensure_ascii=False) if as_json else line)


def run_verify(index: Path | None, *, as_json: bool, repaired: Mapping[str, Any] | None = None) -> bool:
    """Verify an index and print the problems, as JSON with what was repaired; returns whether there are none."""
    with open_named(index) as opened:
        report = opened.verify()
    if as_json:
        repair = {} if repaired is None else {"repair": repaired}
        print(json.dumps({**asdict(report), "ok": report.ok, **repair}, ensure_ascii=False))
        return report.ok
    for note in report.notes:
        log_stderr(f"note: {note}")
    if report.ok:
        print(escape_control(f"{report.path} is intact: {report.files} files, {images(report.items)}"))
    for problem in report.problems:
        print(escape_control(problem))
    return report.ok


def run_explain(index: Path | None, *, where: str | None, as_json: bool) -> None:
    """Print how an index would be searched."""
    with open_named(index) as opened:
        report = explain_search(opened, where=where)
    line = f"{images(report.items)}; {_ann(report.ann_index)}"
    if report.ann_index not in _EXACT:
        line += f" over {report.covered:,} vectors, {report.tail:,} added since"
    print_report(report, as_json=as_json, lines=[line, *(f"  {step}" for step in report.steps)])


def run_encoders(*, as_json: bool) -> None:
    """Print the encoders."""
    from llm2clip.encoders import list_encoders

    cards = list_encoders()
    if as_json:
        print(json.dumps([asdict(card) for card in cards], ensure_ascii=False))
    else:
        print(table(cards, width=get_terminal_size().columns if sys.stdout.isatty() else None))
