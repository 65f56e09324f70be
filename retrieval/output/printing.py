"""Answers on standard output: as tables for people, as lines for other programs."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import TextIOWrapper
from typing import Literal

from llm2clip.common.terminal import escape_control
from llm2clip.retrieval.output.results import Answer, answer_json, answer_paths, answer_record, answer_table

Output = Literal["table", "json", "jsonl", "tsv", "paths", "null"]
"""``json``: a query per line; ``jsonl``, ``tsv``: a hit per line; ``null``: paths, each ended by a null byte."""

TSV_COLUMNS = ("query", "rank", "score", "confidence", "time", "width", "height", "uri", "caption")

_TRAILING_SPACES = re.compile(r" +((?:\x1b\[[0-9;]*m)*)$", re.MULTILINE)
"""Padding of the last column, before escape sequences that end a style."""


def print_answers(
    answers: Sequence[Answer],
    *,
    output: Output = "table",
    pictures: Callable[[Answer, int], Iterable[str]] | None = None,
) -> None:
    """Print answers to standard output; ``pictures`` gives what follows a table in a terminal of so many cells."""
    if output == "table":
        from rich.console import Console

        _encode(errors="replace")
        console = Console(highlight=False)
        for answer in answers:
            with console.capture() as printed:
                console.print(answer_table(answer, width=console.width))
            console.file.write(_TRAILING_SPACES.sub(r"\1", printed.get()))
            console.file.writelines(pictures(answer, console.width) if pictures else ())
    elif output in ("json", "jsonl"):
        ascii_only = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
        for answer in answers:
            lines = [answer_json(answer, ascii_only=ascii_only)] if output == "json" else _hit_lines(answer)
            for line in lines:
                print(line)
    else:
        # The bytes of the file's name, even if they are not UTF-8.
        _encode(errors="surrogateescape", encoding="utf-8" if os.name == "posix" else None)
        if output == "tsv":
            print("\t".join(TSV_COLUMNS))
        for answer in answers:
            if output == "tsv":
                for row in _tsv_rows(answer):
                    print(row)
            else:
                for place in answer_paths(answer):
                    print(place, end="\0" if output == "null" else "\n")
    sys.stdout.flush()


def _hit_lines(answer: Answer) -> Iterator[str]:
    """Each hit as a JSON object with its query; ASCII, so that any reader takes it."""
    record = answer_record(answer)
    return (json.dumps({"query": record["query"], **hit}) for hit in record["hits"])


def _tsv_rows(answer: Answer) -> Iterator[str]:
    """Each hit as a line of ``TSV_COLUMNS``; tabs, line breaks and control characters within a value are escaped."""
    record = answer_record(answer)
    for hit in record["hits"]:
        values = (({"query": record["query"]} | hit)[name] for name in TSV_COLUMNS)
        yield "\t".join("" if value is None else _cell(str(value)) for value in values)


def _cell(text: str) -> str:
    """A value without what would end it; bytes of file names that are not UTF-8 stay."""
    return "".join(char if "\udc80" <= char <= "\udcff" else escape_control(char) for char in text)


def _encode(*, errors: Literal["replace", "surrogateescape"], encoding: str | None = None) -> None:
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding=encoding, errors=errors)
